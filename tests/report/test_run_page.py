"""A run's page is made from files alone, shows the numbers, loads nothing, and survives partial and hostile runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from run_folders import HOSTILE, assert_sound, make_run

from slca_fast.errors import UserError
from slca_fast.report.run_page import write_report
from slca_fast.runs.reading import read_run

PNGS = ("accuracy_curve.png", "accuracy_matrix.png", "confusion.png", "loss.png", "phases.png")


def test_headline_numbers_and_sections(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = assert_sound(path)
    text = " ".join(page.text.split())
    for expected in (
        "80.25 %",
        "88.38 %",
        "13.69 pts",
        "-13.69 pts",
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
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.thorough
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
    # Rows [96.5], [87.38, 88.88], [78.25, 79.75, ..]: drops 18.25 and 9.13.
    assert record.metric("forgetting") == pytest.approx((18.25 + 9.13) / 2)
    assert record.metric("backward_transfer") == pytest.approx(-(18.25 + 9.13) / 2)
    finished = json.loads((make_run(tmp_path / "finished") / "summary.json").read_text())
    for name in ("last_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer"):
        assert record.metric(name) == finished[name]


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


@pytest.mark.thorough
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
    run = make_run(tmp_path / "run", sizes=(5, 5), without=("summary.json",))
    (run / "accuracy_matrix.csv").write_text("after,task 1,task 2\n1,90.0,\n2,80.0,95.0\n")
    assert read_run(run).matrix == ((90.0, None), (80.0, 95.0))


def test_a_log_that_is_ahead_of_the_summary_counts(tmp_path):
    run = make_run(tmp_path / "run", without=("accuracy_matrix.csv",))
    whole = read_run(run)
    summary = json.loads((run / "summary.json").read_text())
    behind = {name: summary[name][:2] for name in ("accuracy_curve", "top5_curve", "accuracy_matrix")}
    (run / "summary.json").write_text(json.dumps({**summary, **behind, "status": "running"}))
    record = read_run(run)
    assert len(record.matrix) == len(record.top5_curve) == 3 and record.curve == whole.curve


def test_one_task_run(tmp_path):
    # An older summary has 0 for what one task leaves undefined.
    for name, older in (("run", {}), ("older", {"forgetting": 0.0, "backward_transfer": 0.0})):
        run = make_run(tmp_path / name, sizes=(10,), accuracy=[97.5], epochs=1, **older)
        text = " ".join(assert_sound(write_report(run)).text.split())
        assert "97.50" in text and "1 task " in text and "not measured" not in text
        assert "Forgetting – Backward transfer – Training" in text
        assert read_run(run).metric("forgetting") is None and read_run(run).metric("backward_transfer") is None


@pytest.mark.slow
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


def test_class_names_follow_the_class_order(tmp_path):
    run = make_run(tmp_path / "run", sizes=(2, 1), class_names=["ant", "bee", "cat"], class_order=[2, 0, 1])
    assert read_run(run).class_names == ["cat", "ant", "bee"]


def test_a_recorded_method_title_goes_first(tmp_path):
    assert read_run(make_run(tmp_path / "titled", method="ncm", method_title="Nearest mean")).method == "Nearest mean"
    assert read_run(make_run(tmp_path / "known", method="slca")).method == "SLCA"
    assert read_run(make_run(tmp_path / "broken", method="slca", method_title=None)).method == "SLCA"


def test_pyplot_stays_out(tmp_path):
    run = make_run(tmp_path / "run")
    code = (
        "import sys, pathlib; from slca_fast.report.run_page import write_report; "
        "write_report(pathlib.Path(sys.argv[1])); "
        "print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
