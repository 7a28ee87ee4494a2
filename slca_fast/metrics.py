"""The field's metrics: accuracy after every task, and what a stream's accuracies sum up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TaskResult:
    """Accuracy after one task."""

    accuracy: float
    """Top-1 over all seen classes' test images, percent."""
    top5: float
    """Top-5 likewise."""
    per_task: tuple[float, ...]
    """Top-1 on each seen task's test images: one row of the accuracy matrix R."""
    confusion: np.ndarray = field(repr=False)
    """Images by (true, predicted) class position, int64 ``[classes, classes]``."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "accuracy": self.accuracy,
            "top5": self.top5,
            "per_task": list(self.per_task),
            "confusion": self.confusion.tolist(),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TaskResult:
        """The inverse of ``as_dict``."""
        return TaskResult(
            values["accuracy"],
            values["top5"],
            tuple(values["per_task"]),
            np.asarray(values["confusion"], dtype=np.int64),
        )


def summary_metrics(results: list[TaskResult]) -> dict[str, object]:
    """Last, Inc, forgetting and backward transfer of a (possibly unfinished) stream, in percent.

    With R[t, k] the accuracy on task k after task t and T tasks: forgetting is the mean over k < T-1 of
    ``max_{t < T-1} R[t, k] - R[T-1, k]``, backward transfer the mean over k < T-1 of ``R[T-1, k] - R[k, k]``.
    """
    matrix = accuracy_matrix(results)
    last = len(results) - 1
    old = range(last)
    return {
        "last_accuracy": results[-1].accuracy,
        "average_incremental_accuracy": float(np.mean([result.accuracy for result in results])),
        "forgetting": float(np.mean([np.nanmax(matrix[:last, k]) - matrix[last, k] for k in old])) if last else 0.0,
        "backward_transfer": float(np.mean([matrix[last, k] - matrix[k, k] for k in old])) if last else 0.0,
        "accuracy_curve": [result.accuracy for result in results],
        "top5_curve": [result.top5 for result in results],
        "accuracy_matrix": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
    }


def accuracy_matrix(results: list[TaskResult]) -> np.ndarray:
    """R ``[T, T]`` in percent; NaN above the diagonal."""
    matrix = np.full((len(results), len(results)), np.nan)
    for task, result in enumerate(results):
        matrix[task, : task + 1] = result.per_task
    return matrix
