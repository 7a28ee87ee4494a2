"""What the run and accuracy suites make of the times and accuracies that they get; the runs are stood in for."""

from __future__ import annotations

import json
import time

import pytest
import torch

from slca_fast.benchmark import machine
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


def test_a_runs_peak_of_memory_is_counted_from_its_start(monkeypatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: happened.append(name))
    suite.timed(lambda: happened.append("run") or {})
    assert happened == ["empty_cache", "reset_peak_memory_stats", "run"]


@pytest.mark.gpu
def test_the_peak_of_a_call_is_its_own() -> None:
    device, held = torch.device("cuda"), torch.randn(2**26, device="cuda")
    torch.randn(2**26, device=device).sum()
    peak = machine.peak_memory_of(lambda: torch.randn(2**20, device=device), device)
    assert peak is not None and 2**22 <= peak < 2**23 < held.nbytes
    assert machine.peak_memory_of(lambda: None, torch.device("cpu")) is None
