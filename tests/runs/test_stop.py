"""Promise 9: a wish to stop is granted soon in every phase, with a verified checkpoint that leads to the same end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import tiny_config, write_images

from slca_fast.experiment import Interrupted, run
from slca_fast.runs.folder import positions
from slca_fast.runs.observer import Observer
from slca_fast.runs.results import ResultsFile
from slca_fast.runs.snapshot import read_snapshot

SIZES = ("--tasks.sizes", "[2,2]", "--eval.every_epochs", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> dict:
    return run(tiny_config(images, tmp_path_factory.mktemp("runs") / "whole", *SIZES), preset="demo")


class AtPhase(Observer):
    """Wishes to stop from the ``count``-th beginning of a phase on; the same while an epoch's accuracy is taken."""

    def __init__(self, phase: str, count: int) -> None:
        self.phase, self.left = phase, count

    def phase_started(self, phase: str, num_images: int) -> None:
        self.left -= phase == self.phase

    def asked(self) -> bool:
        return self.left <= 0


@pytest.mark.parametrize("task", [1, pytest.param(2, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("phase", ["stage 1", "statistics", "alignment", "evaluation"])
def test_a_stop_in_every_phase_is_granted_there(images, whole, tmp_path, phase: str, task: int) -> None:
    config = tiny_config(images, tmp_path / "run", *SIZES)
    observer = AtPhase(phase, 2 * task if phase == "stage 1" else task)
    with pytest.raises(Interrupted):
        run(config, preset="demo", observer=observer, should_stop=observer.asked)
    _, state = read_snapshot(positions(tmp_path / "run/checkpoints")[-1])
    position = state["position"]
    assert position["task"] == task - 1 and position["epoch"] == (1 if phase == "stage 1" else 2)
    assert len(ResultsFile(tmp_path / "run/checkpoints").read(task - 1)) == task - 1
    again = run(config, preset="demo", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"] and again["accuracy_matrix"] == whole["accuracy_matrix"]


def test_a_stop_while_an_epochs_accuracy_is_taken_keeps_the_epoch_and_its_line(images, whole, tmp_path) -> None:
    from slca_fast.experiment import Experiment

    config, asked = tiny_config(images, tmp_path / "run", *SIZES), []
    original = Experiment._accuracy_now

    def accuracy_now(self, images):
        asked.append(1)
        return original(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "_accuracy_now", accuracy_now)
        with pytest.raises(Interrupted):
            run(config, preset="demo", should_stop=lambda: len(asked) > 2)
    _, state = read_snapshot(positions(tmp_path / "run/checkpoints")[-1])
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 3)
    again = run(config, preset="demo", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    epochs = [e for e in events if e["event"] == "epoch"]
    assert [(e["task"], e["epoch"]) for e in epochs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all("test_accuracy" in e for e in epochs)


@pytest.mark.slow
@pytest.mark.parametrize("deaf_seconds, code", [(0.0, 128 + signal.SIGTERM), (30.0, 7)])
def test_the_second_signal_ends_the_process_at_once_unless_it_is_the_first_passed_on(deaf_seconds, code) -> None:
    script = f"""
import os, signal, time
from slca_fast.cli.train import StopSignal
with StopSignal(deaf_seconds={deaf_seconds}) as stop:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    assert stop.asked() and stop.number == signal.SIGINT
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
os._exit(7)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("stopping after this batch") == 1 and time.monotonic() - began < 60


@pytest.mark.parametrize("every_minutes, num_saved", [("0", 5), ("1e-6", 1)])
def test_a_slow_disk_makes_checkpoints_rarer_not_training_slower(
    images, tmp_path, monkeypatch, every_minutes: str, num_saved: int
) -> None:
    from slca_fast.runs.folder import RunFolder

    original, saved = RunFolder.save_position, []

    def slow(self, *args):
        saved.append(args[:3])
        time.sleep(0.3)
        return original(self, *args)

    monkeypatch.setattr(RunFolder, "save_position", slow)
    extra = ("--tasks.sizes", "[4]", "--optim.epochs", "5", "--checkpoint.every_minutes", every_minutes)
    summary = run(tiny_config(images, tmp_path / "run", *extra), preset="demo")
    # The first is written when it is due, the last because the task is done.
    assert len(saved) == num_saved + (every_minutes != "0")
    assert summary["checkpoint_seconds"] == pytest.approx(0.3 * len(saved), rel=0.5)
