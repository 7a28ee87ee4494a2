"""Interleaved timing: contenders take turns in every round, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

SHORTEST_MEASUREMENT_MS = 2.0


@dataclass(frozen=True)
class Ratio:
    """How many times faster ``ours`` is than ``baseline``: median, least and greatest over n rounds."""

    median: float
    least: float
    greatest: float
    n: int


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one call, by contender and round."""

    elapsed_ms: dict[str, list[float]]

    def median_ms(self, name: str) -> float:
        return statistics.median(self.elapsed_ms[name])

    def ratio(self, baseline: str, ours: str) -> Ratio:
        """Baseline time over our time, round by round."""
        ratios = [slow / fast for slow, fast in zip(self.elapsed_ms[baseline], self.elapsed_ms[ours])]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    rounds: int = 20,
    least_rounds: int = 3,
    budget_s: float = 4.0,
) -> Timings:
    """Times every contender once a round, in an order that rotates, until ``rounds`` or the budget is used up.

    A measurement repeats the call so often that it lasts about two milliseconds; on CUDA it is taken by events.
    Every contender is called twice before the first round.
    """
    repeats = {}
    for name, contender in contenders.items():
        contender()
        repeats[name] = max(1, int(SHORTEST_MEASUREMENT_MS / max(_measure_ms(contender, device, 1), 1e-3)))
    elapsed_ms: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    started = time.perf_counter()
    for number in range(rounds):
        if number >= least_rounds and time.perf_counter() - started > budget_s:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            elapsed_ms[name].append(_measure_ms(contenders[name], device, repeats[name]))
    return Timings(elapsed_ms)


def _measure_ms(contender: Callable[[], Any], device: torch.device, repeats: int) -> float:
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        before.record()
        for _ in range(repeats):
            contender()
        after.record()
        torch.cuda.synchronize(device)
        return before.elapsed_time(after) / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        contender()
    return (time.perf_counter() - start) * 1e3 / repeats
