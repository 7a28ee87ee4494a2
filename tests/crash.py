"""Real training processes that die by SIGKILL, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slca_fast import files
from slca_fast.experiment import run
from slca_fast.machine.ranks import join_ranks
from slca_fast.model import backbone
from slca_fast.runs.folder import begun
from slca_fast.runs.observer import Observer


@dataclass(frozen=True)
class Death:
    """Where a process kills itself: at the ``count``-th event of a kind."""

    event: str
    """A phase of ``Observer.phase_started``, "batch", or "file" (a write, fsync or rename, before it happens)."""
    count: int


class _Reaper(Observer):
    def __init__(self, death: Death) -> None:
        self.death, self.left = death, death.count

    def phase_started(self, phase: str, num_images: int) -> None:
        self.seen(phase)

    def advanced(self, num_images: int) -> None:
        self.seen("batch")

    def seen(self, event: str) -> None:
        if event == self.death.event:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class _DeadlyOs:
    """The module ``os`` as files.py uses it, with a death in one of its calls (after half of a write)."""

    def __init__(self, reaper: _Reaper) -> None:
        self._reaper = reaper

    def __getattr__(self, name: str):
        return getattr(os, name)

    def write(self, descriptor: int, data) -> int:
        if self._reaper.death.event == "file" and self._reaper.left == 1:
            os.write(descriptor, data[: len(data) // 2])
        self._reaper.seen("file")
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._reaper.seen("file")
        os.fsync(descriptor)

    def rename(self, source, target) -> None:
        self._reaper.seen("file")
        os.rename(source, target)


def train(config, log: str, death: Death | None, rank: int, size: int, port: int) -> None:
    """A rank's whole life; its output goes to the file ``log``."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Batches pass in several parts, as large ones do.
    backbone.PART_NUMBERS = 3 * 5 * 24
    reaper = _Reaper(death or Death("", 0))
    files.os = _DeadlyOs(reaper)
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        ranks = join_ranks(cuda=False)
        resume = ranks.from_first(lambda: begun(Path(config.output)))
        run(config, preset="demo", resume=resume, observer=reaper, ranks=ranks)
        ranks.leave()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def processes(config, folder: Path, death: Death | None = None, size: int = 1) -> list:
    """Started ranks of one run; ``death`` strikes rank 0, the one that writes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [tempfile.mkstemp(prefix=f"rank{rank}-", suffix=".log", dir=folder)[1] for rank in range(size)]
    started = [
        _context().Process(target=train, args=(config, logs[rank], death if rank == 0 else None, rank, size, port))
        for rank in range(size)
    ]
    for process, log in zip(started, logs):
        process.start()
        process.log = Path(log)
    return started


def wait(started: Sequence, seconds: float = 120) -> list[int]:
    """Exit codes of the ranks; a rank that hangs fails the test."""
    for process in started:
        process.join(seconds)
        assert process.exitcode is not None, f"a rank hangs: {process.log.read_text()}"
    return [process.exitcode for process in started]


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash"])
    # The server finds this module as the tests do.
    here = str(Path(__file__).parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, paths)])
    return context
