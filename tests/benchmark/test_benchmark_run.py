"""What the run and accuracy suites make of the times and accuracies that they get; the runs are stood in for."""

from __future__ import annotations

import json
import time

import pytest

from slca_fast.benchmark import run as suite
from slca_fast.cli import main


@pytest.fixture
def seen(monkeypatch) -> list:
    """The configurations that were run, in order; the official way is slow and ends at 50%, ours at 60%."""
    configs = []

    def official(config):
        configs.append(("official", config))
        time.sleep(0.05)
        return {"accuracy_curve": [90.0, 50.0], "phase_seconds": {"stage1": 0.05}}

    def ours(config):
        configs.append((config.runtime.precision, config))
        time.sleep(0.005)
        return {"accuracy_curve": [80.0, 60.0], "phase_seconds": {"stage1": 0.005}, "peak_memory_bytes": 7}

    monkeypatch.setattr(suite.official_way, "run_official", official)
    monkeypatch.setattr(suite, "run_ours", ours)
    return configs


def test_whole_runs_take_turns_and_their_ratio_is_to_the_official_way(seen, tmp_path) -> None:
    lines: list[str] = []
    rows = suite.measure(methods=("slca",), rounds=2, images=tmp_path, on_line=lines.append)
    assert [who for who, _ in seen] == ["official", "fp32", "bf16"] * 2
    assert {config.model.lora.rank for _, config in seen} == {0}
    baseline, *ours = rows
    assert baseline["backend"] == suite.OFFICIAL and baseline["ratio"] == 1 and baseline["n"] == 2
    for row in ours:
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"] and row["ratio"] > 1
        assert row["last_accuracy"] == [60.0, 60.0] and row["peak_memory_bytes"] == 7
    assert len(lines) == 6 and "accuracy 60.00%" in lines[1]


@pytest.mark.slow
def test_the_accuracy_suite_gives_every_way_the_same_stream(seen, capsys, tmp_path) -> None:
    file = tmp_path / "accuracy.json"
    assert main(["bench", "--suite", "accuracy", "--only", "slcapp", "--json", str(file)]) == 0
    assert [who for who, _ in seen] == ["official", "fp32", "bf16"] * 3
    assert [config.seed for _, config in seen] == [1993] * 3 + [1996] * 3 + [1997] * 3
    assert {config.data.recipe for _, config in seen} == {"imagenet-r"}
    assert "slcapp bf16: Last 60.00 +- 0.00, Inc 70.00 +- 0.00" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [row["last_accuracy"] for row in rows] == [[50.0] * 3, [60.0] * 3, [60.0] * 3]


@pytest.mark.parametrize("name", ["run", "accuracy", "stages"])
def test_unknown_names_are_refused(name, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--suite", name, "--only", "nothing"])
    assert stopped.value.code == 2 and "nothing is none of" in capsys.readouterr().err
