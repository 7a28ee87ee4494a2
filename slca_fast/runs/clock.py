"""A run's clock: seconds by phase, images trained, and all that counts on over resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from slca_fast.machine.ranks import ALONE, Ranks
from slca_fast.training.stage1 import EpochReport

PHASES = ("stage1", "statistics", "alignment", "evaluation", "data", "compile")


class Clock:
    """Runs from its making; ``go_on_from`` adds what an earlier process of the same run had measured."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.device = torch.device("cpu")
        """Where the run computes."""
        self._ranks, self._exchange_began, self._earlier_exchange = ranks, ranks.seconds, 0.0
        self._began, self._earlier_seconds = time.perf_counter(), 0.0
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.trained_images = 0
        self.train_seconds = self.checkpoint_seconds = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time within to phase ``name``; on CUDA the device has finished at its end."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] += time.perf_counter() - start

    def set_up(self) -> None:
        """All up to now, since the making, was for the data."""
        self.seconds["data"] += time.perf_counter() - self._began

    def epoch_finished(self, report: EpochReport) -> None:
        """Counts an epoch; its waiting for images belongs to the data."""
        self.seconds["stage1"] -= report.data_seconds
        self.seconds["data"] += report.data_seconds
        self.trained_images += report.num_images
        self.train_seconds += report.seconds

    @property
    def total_seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._began

    @property
    def exchange_seconds(self) -> float:
        """Waiting for other ranks and exchanging with them."""
        return self._earlier_exchange + self._ranks.seconds - self._exchange_began

    @property
    def train_images_per_second(self) -> float:
        return self.trained_images / self.train_seconds if self.train_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "seconds": dict(self.seconds),
            "total_seconds": self.total_seconds,
            "trained_images": self.trained_images,
            "train_seconds": self.train_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "exchange_seconds": self.exchange_seconds,
        }

    def go_on_from(self, reading: Mapping[str, Any]) -> None:
        """Counts on from ``to_dict`` of the process before; what a version before did not keep counts from 0.

        Raises KeyError, TypeError, ValueError or AttributeError for what ``to_dict`` cannot have given.
        """
        seconds = {name: float(value) for name, value in reading["seconds"].items()}
        total, images = float(reading["total_seconds"]), int(reading["trained_images"])
        train, checkpoint, exchange = (
            float(reading.get(name, 0.0)) for name in ("train_seconds", "checkpoint_seconds", "exchange_seconds")
        )
        self.seconds = {name: self.seconds.get(name, 0.0) + seconds.get(name, 0.0) for name in (*PHASES, *seconds)}
        self._earlier_seconds += total
        self.trained_images += images
        self.train_seconds += train
        self.checkpoint_seconds += checkpoint
        self._earlier_exchange += exchange
