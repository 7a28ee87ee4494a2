"""The files a run leaves behind besides its checkpoints: summary.json, accuracy matrix, confusion, data problems."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slca_fast.files import replace_json, replace_text
from slca_fast.machine.ranks import Ranks
from slca_fast.metrics import TaskResult, accuracy_matrix, summary_metrics
from slca_fast.runs.clock import Clock
from slca_fast.runs.facts import run_facts
from slca_fast.runs.setup import Setup


class Summaries:
    """Writes a run's summary: at its end, and before that as often as is cheap, for it grows with every task.

    ``metrics.jsonl`` has every task in the meantime.
    """

    def __init__(self, setup: Setup, ranks: Ranks, clock: Clock) -> None:
        self._setup, self._ranks, self._clock = setup, ranks, clock
        self._written_at, self._seconds, self._num_tasks = 0.0, 0.0, len(setup.results)

    def due(self) -> bool:
        """Whether writing takes no more than a twentieth of the time since it was done; never on other ranks."""
        return self._ranks.is_first and time.monotonic() - self._written_at >= 19 * self._seconds

    def behind(self, results: Sequence[TaskResult]) -> bool:
        """Whether a task of ``results`` was finished since."""
        return self._num_tasks < len(results)

    def write(self, status: str, results: Sequence[TaskResult]) -> dict[str, Any]:
        """Writes what a run leaves behind and returns the summary, which other ranks have in short."""
        if not self._ranks.is_first:
            return {**summary_metrics(results), "status": status}
        began, folder = time.monotonic(), self._setup.folder.path
        replace_json(folder / "problems.json", self._setup.problems)
        facts = run_facts(self._setup, self._clock, len(results))
        summary = write_results(folder, results, {"status": status, "num_ranks": self._ranks.size, **facts})
        self._written_at, self._num_tasks = time.monotonic(), len(results)
        self._seconds = self._written_at - began
        return summary


def write_results(folder: Path, results: Sequence[TaskResult], facts: dict[str, Any]) -> dict[str, Any]:
    """Writes ``summary.json`` (the metrics plus ``facts``), ``accuracy_matrix.csv`` and ``confusion.csv``.

    Returns the summary.
    """
    summary = {**summary_metrics(results), **facts}
    header = ["after task", *(f"task {k + 1}" for k in range(len(results)))]
    matrix = accuracy_matrix(results)
    rows = [[t, *("" if a is None else f"{a:.4f}" for a in row)] for t, row in enumerate(matrix, start=1)]
    replace_text(folder / "accuracy_matrix.csv", _csv([header, *rows]))
    if (confusion := results[-1].confusion) is not None:
        replace_text(folder / "confusion.csv", _csv(confusion.rows()))
    replace_json(folder / "summary.json", summary)
    return summary


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
