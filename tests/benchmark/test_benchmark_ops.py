"""The benchmark of ops: its rows, its refusal to time a wrong op, and its arithmetic."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from slca_fast.benchmark import ops
from slca_fast.benchmark.timing import Timings, interleaved
from slca_fast.ops.registry import all_ops

CPU = torch.device("cpu")
COLUMNS = {
    "suite", "name", "shape", "dtype", "backend", "baseline", "median_ms", "baseline_median_ms", "ratio", "ratio_min",
    "ratio_max", "n", "achieved", "unit", "fraction_of_peak", "peak_memory_bytes",
}  # fmt: skip


def small(spec):
    return dataclasses.replace(spec, benchmark_samples=lambda *a: list(spec.samples(*a))[-1:])


def test_rows_have_the_columns_users_rely_on(monkeypatch):
    name = "symmetric_cross_entropy"
    monkeypatch.setitem(all_ops(), name, small(all_ops()[name]))
    seen = []
    rows = ops.run(CPU, names=[name], dtypes=[torch.float32], compiled=False, budget_s=0.05, on_row=seen.append)
    assert rows and rows == seen
    for row in rows:
        assert set(row) == COLUMNS
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"] and row["n"] >= 3
        assert row["unit"] == "GB/s" and row["fraction_of_peak"] > 0


def test_a_wrong_op_is_not_timed(monkeypatch):
    name = "symmetric_cross_entropy"
    spec = small(all_ops()[name])
    wrong = dataclasses.replace(
        spec,
        function=lambda *args, backend="auto", **kwargs: 1.01 * spec.reference(*args, **kwargs),
        backends={"cpu": ("native",)},
    )
    monkeypatch.setitem(all_ops(), name, wrong)
    problems = []
    rows = ops.run(CPU, names=[name], dtypes=[torch.float32], compiled=False, on_problem=problems.append)
    assert rows == [] and "is off by" in problems[0]


def test_an_unknown_op_is_named():
    with pytest.raises(ValueError, match="no such op: cross_entrpy"):
        ops.run(CPU, names=["cross_entrpy"])


def test_ratios_are_taken_round_by_round():
    timings = Timings({"slow": [4.0, 10.0, 6.0], "fast": [1.0, 5.0, 2.0]})
    ratio = timings.ratio("slow", "fast")
    assert (ratio.median, ratio.least, ratio.greatest, ratio.n) == (3.0, 2.0, 4.0, 3)


def test_interleaved_timing_sees_a_slower_contender():
    contenders = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}
    timings = interleaved(contenders, CPU, rounds=4)
    assert timings.ratio("slow", "fast").median > 2
