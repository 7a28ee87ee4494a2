"""Reports are made from files alone, show the numbers, load nothing, and survive partial and hostile runs."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from slca_fast.errors import UserError
from slca_fast.report.pages import compare_runs, comparison_rows, comparison_table, write_report
from slca_fast.runs.record import read_run

PNGS = ("accuracy_curve.png", "accuracy_matrix.png", "confusion.png", "loss.png", "phases.png")


def make_run(
    folder: Path,
    *,
    preset="demo",
    method="slcapp",
    seed=1993,
    sizes=(2, 2, 2),
    accuracy=None,
    epochs=4,
    class_names=None,
    without=(),
    config=None,
    **summary_changes,
) -> Path:
    """A run folder as training leaves it; ``without`` names files not to write."""
    folder.mkdir(parents=True)
    num_tasks, num_classes = len(sizes), sum(sizes)
    rng = np.random.default_rng(seed)
    curve = list(accuracy or np.round(np.linspace(96.5, 80.25, num_tasks), 2))
    matrix = [
        [round(float(min(99.9, curve[t] + 1.5 * k - t)), 2) if k <= t else None for k in range(num_tasks)]
        for t in range(num_tasks)
    ]
    names = class_names or [f"class {c}" for c in range(num_classes)]
    summary = {
        "preset": preset,
        "method": method,
        "seed": seed,
        "last_accuracy": curve[-1],
        "average_incremental_accuracy": float(np.mean(curve)),
        "forgetting": 3.25,
        "backward_transfer": -2.75,
        "accuracy_curve": curve,
        "top5_curve": [min(100.0, a + 4) for a in curve],
        "accuracy_matrix": matrix,
        "task_sizes": list(sizes),
        "class_order": rng.permutation(num_classes).tolist(),
        "class_names": names,
        "phase_seconds": {
            "stage1": 61.2,
            "statistics": 3.4,
            "alignment": 5.5,
            "evaluation": 8.0,
            "data": 6.1,
            "compile": 0.0,
        },
        "total_seconds": 90.0,
        "train_images_per_second": 1234.5,
        "peak_memory_bytes": 3 * 2**29,
        "backends": {"symmetric_cross_entropy": "native", "data": "pillow"},
        "backend_reasons": {"symmetric_cross_entropy": "fastest on this CPU", "data": "no GPU decoder here"},
        "versions": {"python": "3.11.2", "torch": "2.14.1", "slca_fast": "0.1.0"},
        "device": "cpu",
        "cpu_threads": 2,
        "precision": "fp32",
        "weights_sha256": "ab" * 32,
        "data_problems": {"quarantined": 1, "notes": {}},
        "status": "complete",
    } | summary_changes
    events = []
    for task in range(num_tasks):
        for epoch in range(epochs):
            loss = 2.2 * math.exp(-epoch / 2) + 0.1 + 0.05 * rng.random()
            events.append(
                {
                    "event": "epoch",
                    "task": task,
                    "epoch": epoch,
                    "num_epochs": epochs,
                    "loss": loss,
                    "lr": {"head": 0.01},
                    "images_per_second": 1200 + 60 * rng.random(),
                    "seconds": 1.1,
                }
            )
        for epoch in range(5 if task else 0):
            events.append({"event": "align", "task": task, "epoch": epoch, "loss": 1.5 * math.exp(-epoch) + 0.2})
        events.append({"event": "something new", "x": 1})
        events.append(
            {"event": "task", "task": task, "accuracy": curve[task], "top5": 99.0, "per_task": matrix[task][: task + 1]}
        )
    confusion_CC = rng.integers(0, 3, (num_classes, num_classes)) + np.diag(rng.integers(30, 50, num_classes))
    tasks = {"scenario": "cil", "initial": sizes[0], "increment": sizes[-1]}
    config = {
        "seed": seed,
        "output": str(folder),
        "tasks": tasks,
        "optim": {"lr": 0.01},
        "method": method,
        **(config or {}),
    }
    files = {
        "summary.json": json.dumps(summary),
        "config.yaml": yaml.safe_dump(config),
        "metrics.jsonl": "".join(json.dumps(event) + "\n" for event in events),
        "accuracy_matrix.csv": "\n".join(",".join("" if a is None else str(a) for a in row) for row in matrix),
        "confusion.csv": "\n".join(",".join(map(str, row)) for row in confusion_CC.tolist()),
        "problems.json": json.dumps(["train/3/a.png: truncated after 812 bytes"]),
    }
    for name in files.keys() - set(without):
        (folder / name).write_text(files[name])
    return folder


class _Page(HTMLParser):
    """Collects tags, what they would load, and the visible text."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.loads, self.tags, self.text, self.open, self.ids = [], [], "", [], []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "srcset", "xlink:href", "href") and not v.startswith("#")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += " " + data if self.open[-1:] != ["style"] else ""


def assert_sound(path: Path) -> _Page:
    page = _Page(path)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(target.startswith("data:image/png") for target in page.loads)
    assert "http:" not in page.source and "https:" not in page.source
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "url(" not in re.sub(r"url\(#\w+\)", "", page.source) and "@import" not in page.source
    assert "nan" not in page.text.lower().split() and "None" not in page.text.split()
    return page


def test_headline_numbers_and_sections(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = assert_sound(path)
    text = " ".join(page.text.split())
    for expected in (
        "80.25 %",
        "88.38 %",
        "3.25 pts",
        "-2.75 pts",
        "1,234 img/s",
        "90.0 s",
        "1.50 GiB",
        "SLCA++",
        "seed 1993",
        "complete",
        "3 tasks",
        "6 classes",
        "fastest on this CPU",
        "2.14.1",
        "ab" * 32,
        "truncated after 812 bytes",
        "1 file left out of the run.",
        "scenario: cil",
    ):
        assert expected in text, expected
    assert page.tags.count("svg") == 6
    assert "<details" in page.source
    for name in PNGS:
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG"), name
    assert not list((tmp_path / "run").glob("*.new"))


def test_report_is_deterministic(tmp_path):
    run = make_run(tmp_path / "run")
    first = {p.name: p.read_bytes() for p in (write_report(run), *(run / name for name in PNGS))}
    write_report(run)
    assert first == {name: (run / name).read_bytes() for name in first}


def test_phase_times_include_the_rest(tmp_path):
    phases = read_run(make_run(tmp_path / "run")).phases()
    assert list(phases) == ["stage1", "statistics", "alignment", "evaluation", "data", "compile", "other"]
    assert phases["other"] == pytest.approx(90.0 - 84.2)


def test_run_in_progress_without_summary(tmp_path):
    run = make_run(tmp_path / "run", without=("summary.json", "confusion.csv", "accuracy_matrix.csv", "problems.json"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "task": 3, "ep')
    page = assert_sound(write_report(run))
    assert "in progress" in page.text
    assert "80.25" in page.text and "88.38" in page.text
    assert "1 unreadable line of metrics.jsonl" in page.text
    assert "Not measured yet" in page.text
    record = read_run(run)
    # rows [96.5], [87.375, 88.875], [78.25, 79.75, ..]: drops 18.25 and 9.125
    assert record.metric("forgetting") == pytest.approx((96.5 - 78.25 + 88.88 - 79.75) / 2, abs=0.02)
    assert record.metric("backward_transfer") == pytest.approx(-record.metric("forgetting"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        '{"status": "running", "accuracy_curve": null}',
        '{"status": "running", "seed": 1, "last_accuracy": NaN, "phase_seconds": []}',
    ],
)
def test_barely_started_run(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    page = assert_sound(write_report(tmp_path))
    assert "not measured" in page.text and "no task is evaluated yet" in page.text
    assert not (tmp_path / "accuracy_curve.png").exists()


@pytest.mark.parametrize(
    "missing", ["config.yaml", "metrics.jsonl", "accuracy_matrix.csv", "confusion.csv", "problems.json"]
)
def test_any_one_file_may_be_missing(tmp_path, missing):
    assert "80.25" in assert_sound(write_report(make_run(tmp_path / "run", without=(missing,)))).text


def test_broken_optional_files_are_named(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "confusion.csv").write_text("1,2\n3\n")
    (run / "problems.json").write_text("[{")
    text = assert_sound(write_report(run)).text
    assert "confusion.csv could not be read" in text and "problems.json is not valid JSON" in text


def test_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="no run here"):
        write_report(tmp_path)


def test_matrix_from_csv_with_header(tmp_path):
    run = make_run(tmp_path / "run", without=("summary.json",))
    (run / "accuracy_matrix.csv").write_text("after,task 1,task 2\n1,90.0,\n2,80.0,95.0\n")
    assert read_run(run).matrix == ((90.0, None), (80.0, 95.0))


def test_one_task_run(tmp_path):
    run = make_run(tmp_path / "run", sizes=(10,), accuracy=[97.5], epochs=1, forgetting=None, backward_transfer=None)
    text = assert_sound(write_report(run)).text
    assert "97.50" in text and "1 task " in text and "not measured" in text


def test_200_classes(tmp_path):
    run = make_run(tmp_path / "run", sizes=(10,) * 20, epochs=30)
    path = write_report(run)
    assert "200 classes" in assert_sound(path).text
    assert path.stat().st_size < 1_500_000


def test_resumed_run_counts_repeated_epochs_once(tmp_path):
    run = make_run(tmp_path / "run", epochs=4)
    repeated = {"event": "epoch", "task": 0, "epoch": 3, "loss": 0.5, "images_per_second": 7.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(repeated) + "\n")
    epochs = read_run(run).epochs
    assert len(epochs) == 12 and epochs[3] == repeated


HOSTILE = "<script>alert('x')</script>\"&]]>--> $\\frac{ </svg> [red]"


def test_hostile_text_is_escaped(tmp_path):
    problems = [{"path": f"train/{HOSTILE}/a.png", HOSTILE: HOSTILE}, HOSTILE]
    run = make_run(
        tmp_path / "run",
        class_names=[HOSTILE, *"bcdef"],
        preset=HOSTILE,
        method=HOSTILE,
        device=HOSTILE,
        backends={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        config={HOSTILE: HOSTILE},
    )
    (run / "problems.json").write_text(json.dumps(problems))
    page = assert_sound(write_report(run))
    assert "<script" not in page.source
    assert page.text.count(HOSTILE) >= 8
    page = assert_sound(compare_runs([run], tmp_path / "out.html"))
    assert "<script" not in page.source and HOSTILE in page.text
    assert "[red]" in _printed(comparison_table([run]))


def test_class_names_follow_the_class_order(tmp_path):
    run = make_run(tmp_path / "run", sizes=(2, 1), class_names=["ant", "bee", "cat"], class_order=[2, 0, 1])
    assert read_run(run).class_names == ["cat", "ant", "bee"]


def _six_runs(tmp_path: Path) -> list[Path]:
    lasts = {"slca": (70.0, 72.0, 77.0), "slcapp": (80.0, 81.0, 82.0)}
    return [
        make_run(
            tmp_path / f"{method}-{seed}",
            preset=f"{method}-demo",
            method=method,
            seed=seed,
            accuracy=[95.0, 90.0, last],
            forgetting=(90.0 - last) / 2,
        )
        for method, values in lasts.items()
        for seed, last in zip((1993, 1996, 1997), values)
    ]


def _printed(table) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_three_seeds_of_two_methods(tmp_path):
    runs = _six_runs(tmp_path)
    slca, slcapp = comparison_rows(runs)
    assert (slca["label"], slca["method"], slca["preset"], slca["num_runs"]) == ("SLCA", "SLCA", "slca-demo", 3)
    assert slca["seeds"] == [1993, 1996, 1997]
    # 70, 72, 77: mean 73, squared deviations 9 + 1 + 16 = 26, over n - 1 = 2 gives 13
    assert slca["last_accuracy_mean"] == pytest.approx(73.0)
    assert slca["last_accuracy_std"] == pytest.approx(math.sqrt(13))
    # Inc = (185 + last) / 3, so its deviation is a third of Last's
    assert slca["average_incremental_accuracy_mean"] == pytest.approx(86.0)
    assert slca["average_incremental_accuracy_std"] == pytest.approx(math.sqrt(13) / 3)
    assert slca["forgetting_mean"] == pytest.approx(8.5)
    assert (slcapp["last_accuracy_mean"], slcapp["last_accuracy_std"]) == (pytest.approx(81.0), pytest.approx(1.0))
    assert (slcapp["total_seconds_mean"], slcapp["total_seconds_std"]) == (90.0, 0.0)
    printed = _printed(comparison_table(runs))
    assert "73.00 ± 3.61" in printed and "81.00 ± 1.00" in printed and "SLCA++" in printed
    path = compare_runs(runs, tmp_path / "out")
    assert path == tmp_path / "out" / "comparison.html" and path.with_suffix(".png").is_file()
    page = assert_sound(path)
    assert "73.00 ± 3.61" in page.text and "81.00 ± 1.00" in page.text and "86.00 ± 1.20" in page.text
    assert '<td class="num best">81.00 ± 1.00</td>' in page.source
    assert page.tags.count("svg") == 4


def test_one_run_has_no_deviation(tmp_path):
    (row,) = comparison_rows([make_run(tmp_path / "run")])
    assert row["last_accuracy_mean"] == 80.25 and row["last_accuracy_std"] is None


def test_a_changed_setting_makes_its_own_group_and_is_named(tmp_path):
    runs = [make_run(tmp_path / str(lr), config={"optim": {"lr": lr}}) for lr in (0.01, 0.02)]
    assert [row["label"] for row in comparison_rows(runs)] == [
        "SLCA++ (demo) [optim.lr=0.01]",
        "SLCA++ (demo) [optim.lr=0.02]",
    ]
    assert_sound(compare_runs(runs, tmp_path / "c.html"))


def test_unfinished_and_repeated_runs_do_not_count(tmp_path):
    done = make_run(tmp_path / "done")
    going = make_run(tmp_path / "going", seed=7, status="running")
    (row,) = comparison_rows([done, going, done])
    assert row["seeds"] == [1993]
    text = assert_sound(compare_runs([done, going], tmp_path / "c.html")).text
    assert "is not finished" in text
    with pytest.raises(UserError, match="none of the 1 runs is complete"):
        comparison_rows([going])
    with pytest.raises(UserError, match="no runs to compare"):
        comparison_rows([])


def test_streams_of_different_length_compare(tmp_path):
    runs = [make_run(tmp_path / "short", method="slca", sizes=(3, 3)), make_run(tmp_path / "long", sizes=(1,) * 6)]
    assert_sound(compare_runs(runs, tmp_path / "c.html"))


def test_terminal_table_needs_neither_torch_nor_matplotlib(tmp_path):
    import subprocess
    import sys

    code = "import sys, slca_fast.report.pages; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_pyplot_stays_out(tmp_path):
    import subprocess
    import sys

    run = make_run(tmp_path / "run")
    code = (
        "import sys, pathlib; from slca_fast.report.pages import write_report; "
        "write_report(pathlib.Path(sys.argv[1])); "
        "print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
