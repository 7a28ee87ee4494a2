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

import yaml
from torch import Tensor

from slca_fast.checkpoint import newest_valid, write_snapshot
from slca_fast.errors import UserError
from slca_fast.tracking import Tracker, numbers_of

METRICS = "metrics.jsonl"
_POSITION = re.compile(r"task-(\d+)-epoch-(\d+)-step-(\d+)$")


def read_config(path: Path) -> dict[str, Any]:
    """``config.yaml`` of a run folder as a dictionary; raises UserError when it cannot be read."""
    try:
        values = yaml.safe_load((path / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} holds no readable run ({error.__class__.__name__} in config.yaml)") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}/config.yaml is not a run's configuration")
    return values


def positions(checkpoints: Path) -> list[Path]:
    """The training checkpoints in a run's ``checkpoints`` folder, oldest first."""
    found = [p for p in checkpoints.iterdir() if _POSITION.match(p.name)] if checkpoints.is_dir() else []
    return sorted(found, key=lambda p: tuple(map(int, _POSITION.match(p.name).groups())))


def require_free(path: Path) -> None:
    """Raises UserError when a new run cannot have ``path`` because something is there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--output {path} exists already: add --resume to continue it, or choose another folder")


class RunFolder:
    """Opens ``path`` for one process: a new run needs an absent or empty folder, a resumed one a run's folder.

    Raises UserError when that is not so, or when another live process holds the folder.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        if resume and not (path / "config.yaml").is_file():
            raise UserError(f"--resume: {path} holds no run; leave --resume out to start one there")
        if not resume:
            require_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "a+")  # noqa: SIM115 - held until close
        except OSError as error:
            raise UserError(f"--output {path}: {error.strerror}") from error
        try:
            # The kernel drops the lock with its process, so a dead owner never blocks.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(
                f"--output {path} is in use by another process (pid {owner}); wait for it or choose another folder"
            ) from None
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self.checkpoints.mkdir(exist_ok=True)
        self.trackers: list[Tracker] = []
        self._num_logged = 0
        self._metrics = open(path / METRICS, "ab")  # noqa: SIM115 - held until close

    def log(self, event: str, **fields: Any) -> None:
        """Appends one line to metrics.jsonl, and its numbers to the trackers."""
        self._metrics.write((json.dumps({"event": event, **fields}) + "\n").encode())
        self._metrics.flush()
        if event in ("epoch", "align", "task"):
            self._num_logged += 1
            for tracker in self.trackers:
                tracker.log(numbers_of(event, fields), self._num_logged)

    @property
    def metrics_bytes(self) -> int:
        return self._metrics.tell()

    def rewind_metrics(self, num_bytes: int) -> None:
        """Drops what was logged after the checkpoint that a resumed run continues from."""
        self._metrics.truncate(num_bytes)
        self._metrics.seek(0, os.SEEK_END)
        with open(self.path / METRICS, "rb") as file:
            self._num_logged = sum(json.loads(line)["event"] in ("epoch", "align", "task") for line in file)

    @property
    def frozen(self) -> Path:
        """Snapshot of the weights that never change."""
        return self.checkpoints / "frozen"

    def statistics(self, task: int) -> Path:
        """File of the Gaussians of a finished task's labels."""
        return self.checkpoints / f"statistics-task-{task:03d}.safetensors"

    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with, as a dictionary."""
        return read_config(self.path)

    def newest(self, report: Callable[[str], None]) -> Iterator[tuple[dict, dict]]:
        """``(tensors, state)`` of the valid training checkpoints, newest first; damaged ones are reported."""
        return newest_valid(positions(self.checkpoints), report)

    def save_position(
        self,
        task: int,
        epoch: int,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        keep: int,
    ) -> Path:
        """Writes the checkpoint of a position and removes all but the ``keep`` newest."""
        name = f"task-{task:03d}-epoch-{epoch:04d}-step-{step:06d}"
        path = write_snapshot(self.checkpoints / name, tensors, state)
        for old in positions(self.checkpoints)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        self._metrics.close()
        self._lock.close()
