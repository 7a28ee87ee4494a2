"""A run's folder on disk: who owns it, its metrics log and its checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slca_fast import files
from slca_fast.config import Config
from slca_fast.config_file import config_from_dict, read_config_file
from slca_fast.errors import UserError
from slca_fast.methods.base import Method
from slca_fast.runs.old_runs import with_method
from slca_fast.runs.results import ResultsFile
from slca_fast.runs.snapshot import newest_valid, write_snapshot
from slca_fast.runs.state import RunState
from slca_fast.runs.tracking import Tracker, numbers_of

METRICS, LOCK = "metrics.jsonl", ".lock"
TRACKED = ("epoch", "align", "task")
_POSITION = re.compile(r"task-(\d+)-epoch-(\d+)-step-(\d+)$")


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a run folder's ``config.yaml``, without the run's label ``preset``.

    Raises UserError when it cannot be read.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} holds no readable run (it has no config.yaml)")
    values = read_config_file(path / "config.yaml")
    values.pop("preset", None)
    return with_method(values)


def run_config(path: Path) -> Config:
    """The configuration of the run in ``path``; raises UserError naming its ``config.yaml`` when it is none."""
    values = read_config(path)
    try:
        return config_from_dict(values)
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'}: {error}") from error


def positions(checkpoints: Path) -> list[Path]:
    """The training checkpoints in a run's ``checkpoints`` folder, oldest first."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    placed = [(place, path) for path in found if (place := _place(path)) is not None]
    return [path for _, path in sorted(placed)]


def is_finished_task(position: Path) -> bool:
    """Whether a training checkpoint lies between two tasks, so that its backbone and classifier belong together."""
    place = _place(position)
    assert place is not None, position
    task, epoch, step = place
    return task > 0 and epoch == 0 and step == 0


def _place(checkpoint: Path) -> tuple[int, ...] | None:
    """(task, epoch, step) of a training checkpoint's name; None for anything else."""
    match = _POSITION.match(checkpoint.name)
    return None if match is None else tuple(map(int, match.groups()))


def require_free(path: Path) -> None:
    """Raises UserError when a new run cannot have ``path`` because something is there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--output {path} exists already: add --resume to continue it, or choose another folder")


def begun(path: Path) -> bool:
    """Whether a run was started in ``path``, be it so short a moment before a crash that it left next to nothing."""
    return (path / "config.yaml").is_file() or (path / LOCK).is_file()


class RunFolder:
    """Opens ``path`` for one process: a new run needs an absent or empty folder, a resumed one a run's folder.

    With several ranks only the ``owner`` (rank 0) locks, checks and writes; what the others write goes nowhere.
    Raises UserError when the folder does not fit, or when another live process holds it.
    """

    def __init__(self, path: Path, resume: bool, owner: bool = True) -> None:
        self.path, self.owner = path, owner
        self.checkpoints = path / "checkpoints"
        self.results = ResultsFile(self.checkpoints)
        self.trackers: list[Tracker] = []
        if not owner:
            return
        if resume and not begun(path):
            raise UserError(f"--resume: {path} holds no run; leave --resume out to start one there")
        if not resume:
            require_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / LOCK, "a+")  # noqa: SIM115 - held until close
        except OSError as error:
            raise UserError(f"--output {path}: {error.strerror}") from error
        try:
            # The kernel drops the lock with its process, so a dead owner never blocks.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(
                f"--output {path} is in use by another process (pid {holder}); wait for it or choose another folder"
            ) from None
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self.checkpoints.mkdir(exist_ok=True)
        # What a killed process was replacing; this folder has no other writer now.
        for left in (*path.glob(".*.new"), *self.checkpoints.glob(".*.new")):
            left.unlink(missing_ok=True)
        self._num_logged = 0
        self._metrics = files.Log(path / METRICS)

    def log(self, event: str, **fields: Any) -> None:
        """Appends one line to metrics.jsonl, and its numbers to the trackers."""
        if not self.owner:
            return
        self._metrics.append(json.dumps({"event": event, **fields}))
        if event in TRACKED:
            self._num_logged += 1
            for tracker in self.trackers:
                tracker.log(numbers_of(event, fields), self._num_logged)

    @property
    def metrics_bytes(self) -> int:
        return self._metrics.num_bytes if self.owner else 0

    def rewind_metrics(self, num_bytes: int) -> None:
        """Drops what was logged after the checkpoint that a resumed run continues from."""
        self._metrics.rewind(num_bytes)
        starts = tuple(f'{{"event": "{event}"'.encode() for event in TRACKED)
        with open(self.path / METRICS, "rb") as file:
            self._num_logged = sum(line.startswith(starts) for line in file)

    @property
    def frozen(self) -> Path:
        """Snapshot of the weights that never change."""
        return self.checkpoints / "frozen"

    def save_memory(self, task: int, method: Method) -> None:
        """Writes what ``method`` remembers of a finished task, once, and again: nothing could measure it anew later."""
        if self.owner:
            for path in self._memory(task):
                method.save(task, path)

    def load_memory(self, task: int, method: Method, device: torch.device, report: Callable[[str], None]) -> bool:
        """Hands ``method`` what ``save_memory`` wrote, from the first of two files that is intact; whether one was."""
        for path in self._memory(task):
            try:
                method.load(task, path, device)
                return True
            except (OSError, ValueError) as problem:
                report(f"statistics file ignored: {problem}")
        return False

    def _memory(self, task: int) -> tuple[Path, Path]:
        names = (f"statistics-task-{task:03d}.safetensors", f"statistics-task-{task:03d}-copy.safetensors")
        return self.checkpoints / names[0], self.checkpoints / names[1]

    def config(self) -> dict[str, Any] | None:
        """The configuration that the run was started with; None when it crashed before writing it."""
        return read_config(self.path) if (self.path / "config.yaml").is_file() else None

    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run; None when there is none or it cannot be read."""
        try:
            summary = json.loads((self.path / "summary.json").read_bytes())
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) and summary.get("status") == "complete" else None

    def newest(self, report: Callable[[str], None]) -> Iterator[tuple[Path, dict, dict]]:
        """``(folder, tensors, state)`` of the valid checkpoints, newest first; damaged ones are reported."""
        return newest_valid(positions(self.checkpoints), report)

    def set_aside_after(self, chosen: Path | None) -> None:
        """Renames the checkpoints newer than ``chosen`` (none: all): they count no longer, but nothing is deleted."""
        found = positions(self.checkpoints)
        for path in found[found.index(chosen) + 1 :] if chosen else found:
            aside = path.with_name(f"unusable-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            files.rename_durably(path, aside)

    def start_over(self) -> None:
        """Forgets everything but the checkpoints that could not be used, which are renamed."""
        self.set_aside_after(None)
        shutil.rmtree(self.frozen, ignore_errors=True)
        self.rewind_metrics(0)

    def save_position(
        self,
        state: RunState,
        tensors: Mapping[str, Mapping[str, Tensor]],
        keep: int,
    ) -> Path:
        """Writes the checkpoint of a position and removes all but the ``keep`` newest and the last finished task's."""
        self._metrics.sync()
        at = state.position
        name = f"task-{at.task:03d}-epoch-{at.epoch:04d}-step-{at.step:06d}"
        path = write_snapshot(self.checkpoints / name, tensors, state.to_dict())
        saved = positions(self.checkpoints)
        # What evaluation and export read must outlive the checkpoints within the next task.
        kept = {*saved[-keep:], *[p for p in saved if is_finished_task(p)][-1:]}
        for old in saved:
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)
        return path

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        if self.owner:
            self._metrics.close()
            self._lock.close()
