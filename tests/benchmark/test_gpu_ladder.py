"""The ladder of measurements for a GPU: every step runs here at tiny sizes, and a part that fails costs the others
nothing."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import carry
import gpu_tests
import ladder
import pytest
import records
import two_runs
from environment import NEEDED_MODULES, SCIENCE_MODULES
from parts import ERROR, Context, Part, Step, run_step
from sizes import DRY

from slca_fast.ops.registry import all_ops

ROOT = Path(__file__).parents[2]
LADDER = ROOT / "bench" / "gpu"
WITHOUT_DALI = "DALI cannot be imported"


@pytest.fixture(scope="module")
def dry(tmp_path_factory) -> dict[str, records.Record]:
    """The record of every step of a dry run."""
    out = tmp_path_factory.mktemp("ladder")
    done = subprocess.run(
        [sys.executable, str(LADDER / "ladder.py"), "all", "--dry", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: records.read(out / f"{name}.json") for name in ladder.STEPS}


@pytest.mark.slow
def test_every_step_runs_and_gets_every_number(dry: dict[str, records.Record]) -> None:
    for name, record in dry.items():
        missing = [row for row in record.rows if row.status == records.NOT_MEASURED]
        assert all((row.reason or "").startswith(WITHOUT_DALI) for row in missing), (name, missing)
        assert record.dry and record.rows and record.machine and record.versions, name
        assert record.seconds < 60 < record.budget_seconds <= 540, name


@pytest.mark.slow
def test_the_steps_hold_what_the_table_asks_for(dry: dict[str, records.Record]) -> None:
    ops = {row.name for row in dry["ops"].rows}
    assert ops >= {f"op {name}" for name in all_ops()}
    # The interpreter runs each Triton kernel that the table of ops has for the CPU.
    interpreted = {row.name for row in dry["ops"].rows if row.way == "triton"}
    assert interpreted == {f"op {name}" for name, spec in all_ops().items() if "triton" in spec.backends["cpu"]}
    for step, method in (("rates-lora", "slcapp"), ("rates-full", "slca")):
        rates = {row.way: row for row in dry[step].rows if row.name == "training step"}
        compiled, fp32, bf16 = (
            rates[way] for way in ("bf16, compiled", "official way, fp32, eager", "official way, bf16 autocast, eager")
        )
        assert compiled.case == f"{method}, batch 4"
        assert set(compiled.ratios) == {fp32.way, bf16.way} and compiled.fraction_of_peak
        assert fp32.value and compiled.value
        assert compiled.ratios[fp32.way]["median"] == pytest.approx(compiled.value / fp32.value, rel=0.9)
        gflop = {way: row.details["gflop_per_image"] for way, row in rates.items()}
        # The official way materialises LoRA and passes all tokens through the last block.
        assert gflop[fp32.way] > gflop["bf16, compiled"] > 0.5 * gflop[fp32.way]
        assert any(row.name == "kernels of a step" and row.details["kernels"] for row in dry[step].rows)
    compared = [row for row in dry["determinism"].rows if row.way == "compared"]
    assert len(compared) >= 2 and all(row.value == 1 for row in compared)
    whole = [row for row in dry["run"].rows if row.name == "whole run"]
    assert [row.status for row in whole] == [records.MEASURED, records.EXTRAPOLATED]
    assert {row.way for row in dry["compile"].rows} == {"cold caches", "warm caches"}
    (tests,) = dry["tests"].rows
    assert tests.details["collected"] == tests.details["skipped"] + tests.value > 0


def test_a_step_is_cut_into_parts_that_fit_its_call() -> None:
    for name in ladder.STEPS:
        step = ladder.step_named(name)
        assert 60 * step.minutes <= 9 * 60 - 10, name
        parts = step.parts(DRY)
        assert len({part.name for part in parts}) == len(parts) > 0
        assert all(0 < part.seconds <= 60 * step.minutes for part in parts)


# The processes of parts


def parts_by_script(tmp_path: Path, scripts: dict[str, tuple[float, str]], minutes: float = 1.0) -> records.Record:
    """A step whose parts are these scripts (with ``rows``, the file that they write) and the seconds of each."""

    def start(part: Part, rows: Path, seconds: float) -> list[str]:
        head = f"import os, sys, time, json, subprocess\nrows = open({str(rows)!r}, 'a', buffering=1)\n"
        return [sys.executable, "-c", head + scripts[part.name][1]]

    parts = [Part(name, seconds, lambda context: ()) for name, (seconds, _) in scripts.items()]
    return run_step("trial", Step("", minutes, lambda sizes: parts), DRY, tmp_path, minutes, dry=False, start=start)


def a_row(case: str) -> str:
    return f"rows.write({records.line_of(records.Row('a', case, value=1.0))!r} + '\\n')\n"


HANGS = """
rows.write('{"half a line')
subprocess.Popen(["sleep", "4711"])
time.sleep(600)
"""


@pytest.mark.slow
def test_a_part_that_crashes_hangs_or_stops_midway_leaves_its_rows_and_the_others(tmp_path) -> None:
    began = time.monotonic()
    record = parts_by_script(
        tmp_path,
        {
            "good": (30, a_row("good") + 'rows.write(json.dumps({"facts": {"device": "x", "versions": {"a": "1"}}}))'),
            "crash": (30, a_row("before the crash") + "os.abort()"),
            "hang": (11, a_row("before the hang") + HANGS),
            "after": (30, a_row("after")),
        },
    )
    assert time.monotonic() - began < 50
    assert [(row.case, row.reason) for row in record.rows] == [
        ("good", None),
        ("before the crash", None),
        ("crash", "the process ended with -6: see trial.log"),
        ("before the hang", None),
        ("hang", "not done after 11 s"),
        ("after", None),
    ]
    assert records.read(tmp_path / "trial.json") == record
    assert record.machine["device"] == "x" and record.versions == {"a": "1"}
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert "sleep 4711" not in running.splitlines()


def test_what_the_time_does_not_hold_is_not_measured(tmp_path) -> None:
    record = parts_by_script(
        tmp_path, {"first": (60, a_row("first") + "time.sleep(0.5)"), "second": (60, "")}, minutes=10.2 / 60
    )
    assert [row.status for row in record.rows] == ["measured", "not measured"]
    assert record.rows[1].reason == "the step's time was up before it began"


def test_an_exception_is_a_row(tmp_path) -> None:
    def measure(context: Context):
        yield records.Row("a", "b", value=1.0)
        raise RuntimeError("CUDA error: an illegal memory access")

    step = Step("", 1.0, lambda sizes: [Part("part", 30, measure)])
    record = run_step("trial", step, DRY, tmp_path, 1.0, dry=True, start=lambda *_: [])
    assert [row.status for row in record.rows] == ["measured", "not measured"]
    assert record.rows[1].reason == f"{ERROR}RuntimeError: CUDA error: an illegal memory access"


def test_a_part_in_a_process_of_its_own_is_the_same(tmp_path) -> None:
    def start(part: Part, rows: Path, seconds: float) -> list[str]:
        command = [sys.executable, str(LADDER / "ladder.py"), "compile", "--out", str(tmp_path), "--part", part.name]
        return [*command, "--rows", str(rows), "--seconds", str(seconds), "--dry"]

    step = ladder.step_named("compile")
    first = Step("", 1.0, lambda sizes: step.parts(sizes)[:1])
    record = run_step("compile", first, DRY, tmp_path, 1.0, dry=False, start=start)
    assert [(row.name, row.way, row.status) for row in record.rows] == [("start-up", "cold caches", "measured")]
    assert record.machine["device"] and "torch" in record.versions


# The tests of the first step

SPOILT = """
import torch
def test_good(): pass
def test_bad(): assert 1 == 2
def test_spoils():
    torch.cuda.is_initialized = lambda: True
    def broken(*_): raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.synchronize = broken
def test_after_the_spoilt_device(): assert not torch.cuda.is_initialized()
"""
HANG = """
import time
def test_hangs(): time.sleep(4711)
def test_after_the_hang(): pass
"""
CRASH = """
import os
def test_before(): pass
def test_crashes(): os.abort()
def test_after_the_crash(): pass
"""


@pytest.mark.slow
def test_no_test_keeps_others_from_running(tmp_path, monkeypatch) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name, text in (("test_a", SPOILT), ("test_b", CRASH), ("test_c", "import nothing_like_it"), ("test_d", HANG)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "MOST_SILENT_SECONDS", 25)
    monkeypatch.setenv("PYTHONPATH", f"{LADDER}:{ROOT}")
    sizes = dataclasses.replace(DRY, test_selection=("test_a.py", "test_b.py", "test_c.py", "test_d.py"))
    (row,) = gpu_tests.measure(Context(sizes, tmp_path, 240))
    assert row.value == 6 and row.details["collected"] == 9
    assert sorted(row.details["failed"]) == ["test_a.py::test_bad", "test_b.py::test_crashes", "test_d.py::test_hangs"]
    assert "assert 1 == 2" in row.details["failed"]["test_a.py::test_bad"]
    assert row.details["failed"]["test_b.py::test_crashes"] == "pytest ended with -6"
    assert row.details["failed"]["test_d.py::test_hangs"] == "hung, or not done in time"
    assert row.details["spoilt_the_device"] == ["test_a.py::test_spoils"]
    assert list(row.details["cannot_collect"]) == ["test_c.py"]
    assert row.reason == "3 failed, 1 files that cannot be collected" and row.details["not_run"] == []


# Records


def test_a_row_says_what_it_has_or_why_not() -> None:
    with pytest.raises(AssertionError):
        records.Row("a", "b", value=float("nan"))
    with pytest.raises(AssertionError):
        records.Row("a", "b", status=records.NOT_MEASURED)
    with pytest.raises(AssertionError):
        records.Row("a", "b", status=records.EXTRAPOLATED, value=1.0)


def test_a_record_of_another_format_is_refused(tmp_path) -> None:
    record = records.Record("ops", False, "2026-01-01", 1.0, 2.0, "", rows=[records.Row("a", "b", value=1.0)])
    records.write(record, tmp_path / "ops.json")
    assert records.read(tmp_path / "ops.json") == record
    values = json.loads((tmp_path / "ops.json").read_text())
    for changed in ({"format": 2}, {"more": 1}, {"rows": [{"name": "a"}]}):
        (tmp_path / "ops.json").write_text(json.dumps({**values, **changed}))
        with pytest.raises(ValueError, match=r"ops\.json"):
            records.read(tmp_path / "ops.json")


# Wheels


def test_parts_are_joined_to_what_was_cut(tmp_path) -> None:
    folder, cut = tmp_path / "big", tmp_path / "cut"
    folder.mkdir(), cut.mkdir()
    for name, size in (("a.whl", 5000), ("b.whl", 12_345)):
        (folder / name).write_bytes(bytes(i * 7 % 251 for i in range(size)))
    parts = carry.cut(folder, cut, part_bytes=10_000)
    assert len(parts) > 2 and all((part / "part").stat().st_size <= 10_000 for part in parts)
    (parts[1] / "part").write_bytes(b"x" + (whole := (parts[1] / "part").read_bytes())[1:])
    with pytest.raises(ValueError, match="not as it was cut"):
        carry.gather(parts[1], tmp_path / "there")
    (parts[1] / "part").write_bytes(whole)
    said = [carry.gather(part, tmp_path / "there") for part in reversed(parts)]
    assert "missing: [0, 1" in said[0] and said[-1].startswith(f"all {len(parts)} parts of big")
    for path in folder.iterdir():
        assert (tmp_path / "there" / "big" / path.name).read_bytes() == path.read_bytes()


THERE = {
    *("torch", "torchvision", "triton", "timm", "numpy", "PIL", "safetensors", "yaml", "huggingface_hub", "pytest"),
    *("jinja2", "markupsafe"),  # come with torch
    *(path.stem for folder in ("bench", "docs", "tests") for path in (ROOT / folder).rglob("*.py")),
    "slca_fast",
}


def test_what_a_machine_may_lack_is_carried() -> None:
    """Whatever the package, the tests and the ladder import when they are imported."""
    asked: dict[str, str] = {}
    for folder in ("slca_fast", "kernels", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                asked |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    carried = {*NEEDED_MODULES, *SCIENCE_MODULES}
    lacking = {name: path for name, path in asked.items() if name not in {*sys.stdlib_module_names, *THERE, *carried}}
    assert not lacking, "add it to carry.py's sets and to environment.py's modules"
    packages = {package.partition("==")[0].replace("-", "_") for wheels in carry.SETS.values() for package in wheels}
    assert packages >= carried


# Two runs of one seed


def test_the_option_for_determinism_is_compared_where_there_is_one(monkeypatch) -> None:
    for option, names in ((None, ["as by default"]), ("deterministic", ["true", "false"])):
        fields = ["device", *([option] if option else [])]
        monkeypatch.setattr(two_runs, "RuntimeConfig", dataclasses.make_dataclass("RuntimeConfig", fields))
        assert [name.removeprefix("runtime.deterministic ") for name in two_runs.settings()] == names


def test_runs_are_equal_when_all_their_weights_are() -> None:
    def row(case: str, sha: str) -> records.Row:
        return records.Row(two_runs.NAME, case, "run", value=1.0, details={"weights_sha256": sha})

    rows = [row("a", "1"), row("a", "1"), row("b", "1"), row("b", "2"), row("c", "1")]
    assert [(found.case, found.value) for found in two_runs.finish(rows)] == [("a", 1.0), ("b", 0.0), ("c", None)]
