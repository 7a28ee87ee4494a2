"""One run as a value: what its folder records, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slca_fast.metrics import Curve, Matrix, metric_named
from slca_fast.runs.old_runs import TITLES


@dataclass(frozen=True)
class RunRecord:
    """Everything a report shows about one run; what is missing on disk, or unfit, is empty or None here.

    Accuracies are percent, times seconds, tasks count from 0. ``matrix[t][k]`` is the accuracy on task k's
    test images after task t; None where it was not measured.
    """

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    epochs: tuple[dict[str, Any], ...]
    alignments: tuple[dict[str, Any], ...]
    curve: Curve
    top5_curve: Curve
    matrix: Matrix
    confusion_CC: np.ndarray | None
    problems: tuple[Any, ...]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """The method's written name, e.g. ``SLCA++``."""
        if title := self.summary.get("method_title"):
            return title
        return TITLES.get(str(self.summary.get("method", "")), str(self.summary.get("method") or "run"))

    @property
    def preset(self) -> str:
        return str(self.summary.get("preset") or self.folder.name)

    @property
    def seed(self) -> Any:
        return self.summary.get("seed", self.config.get("seed"))

    @property
    def task_sizes(self) -> tuple[int, ...]:
        return tuple(self.summary.get("task_sizes") or ())

    @property
    def domain_incremental(self) -> bool:
        tasks = self.config.get("tasks")
        return isinstance(tasks, dict) and tasks.get("scenario") == "dil"

    @property
    def classes_seen(self) -> tuple[int, ...] | None:
        """Number of classes seen after each task; None where that does not grow or is not recorded."""
        if self.domain_incremental or len(self.task_sizes) < max(1, len(self.curve)):
            return None
        return tuple(int(n) for n in np.cumsum(self.task_sizes))

    @property
    def complete(self) -> bool:
        if "status" in self.summary:
            return self.summary["status"] == "complete"
        return bool(self.curve) and len(self.curve) == len(self.task_sizes)

    @property
    def class_names(self) -> list[str]:
        """Names in class order; empty when the run does not tell them."""
        names, order = self.summary.get("class_names") or [], self.summary.get("class_order") or []
        return [names[c] for c in order] if sorted(order) == list(range(len(names))) else names

    def metric(self, name: str) -> float | None:
        """A metric of the run, or of what a run in progress has so far; None where it is undefined or unknown.

        Taken from the accuracies where they are recorded, since older summaries hold 0 for what is undefined.
        """
        function, recorded = metric_named(name).function, self.summary.get(name)
        if function is None:
            return recorded
        value = function(self.curve, self.matrix)
        return recorded if value is None and not (self.curve and self.matrix) else value

    def phases(self) -> dict[str, float]:
        """Seconds per phase in a fixed order; ``other`` is what the total has beyond them."""
        recorded = self.summary.get("phase_seconds") or {}
        order = ["stage1", "statistics", "alignment", "evaluation", "data", "compile"]
        names = [n for n in order if n in recorded] + [n for n in recorded if n not in order]
        phases = {n: recorded[n] for n in names if recorded[n] is not None}
        total = self.metric("total_seconds")
        if phases and total is not None and total - sum(phases.values()) > 0.005 * total:
            phases["other"] = total - sum(phases.values())
        return phases
