"""The field's metrics: accuracy after every task, and the one table of what a run's accuracies sum up to.

With R[t][k] the top-1 accuracy in percent on task k's test images after task t: a metric is one row of ``METRICS``,
and the summary, the reports, the comparison and the terminal show what the table holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

Curve = tuple[float | None, ...]
"""Top-1 accuracy over all seen classes after each task, percent; None where it was not measured."""
Matrix = tuple[Curve, ...]
"""R: row t has the accuracy on task k after task t, percent; None where it was not measured, as for later tasks."""

ABSENT = "–"
"""How a number that is undefined or was not measured is written."""


@dataclass(frozen=True)
class Bars:
    """How a comparison's bar chart of a metric is captioned."""

    heading: str
    axis: str
    """Label of the axis, with the unit."""
    note: str


@dataclass(frozen=True)
class Metric:
    """One number of a run."""

    name: str
    """The key in ``summary.json``."""
    heading: str
    """Its column in tables and word in the terminal; empty: it is on the run's page only."""
    title: str
    """Its name on the card of a run's page."""
    meaning: str
    """One line."""
    unit: str
    """Unit of the number as it is written."""
    higher_is_better: bool
    function: Callable[[Curve, Matrix], float | None] | None
    """From the accuracies, None where they do not define it; no function: a fact that the run records."""
    decimals: int = 2
    """On pages."""
    terminal_decimals: int = 2
    """In the terminal's table."""
    card_decimals: int = 2
    """On the card of a run's page, which writes seconds as a duration."""
    scale: float = 1.0
    """The recorded number is divided by this to be written in ``unit``."""
    main: bool = False
    """Whether a run's page stresses it and a comparison lists it run by run."""
    bars: Bars | None = None
    """Bar chart in a comparison; None: no chart."""

    def text(self, value: float | None, decimals: int) -> str:
        """The number as it is written, without its unit; a dash for None."""
        return ABSENT if value is None else f"{value / self.scale:,.{decimals}f}"

    def spread_text(self, mean: float | None, std: float | None, decimals: int) -> str:
        """Mean ± standard deviation likewise; the mean alone where there is no deviation."""
        return self.text(mean, decimals) + ("" if std is None else f" ± {self.text(std, decimals)}")


def last_accuracy(curve: Curve, matrix: Matrix) -> float | None:
    """Accuracy over all classes after the last task, percent."""
    return curve[-1] if curve else None


def average_incremental_accuracy(curve: Curve, matrix: Matrix) -> float | None:
    """Mean of the accuracies after each task, percent (Rebuffi et al., "iCaRL", CVPR 2017)."""
    return _mean(curve)


def forgetting(curve: Curve, matrix: Matrix) -> float | None:
    """Mean over k < T-1 of ``max_{t < T-1} R[t][k] - R[T-1][k]``, in points; None for a single task.

    Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018.
    """
    old = range(len(matrix) - 1)
    best = [max((a for t in old if (a := _at(matrix, t, k)) is not None), default=None) for k in old]
    return _mean([_difference(best[k], _at(matrix, -1, k)) for k in old])


def backward_transfer(curve: Curve, matrix: Matrix) -> float | None:
    """Mean over k < T-1 of ``R[T-1][k] - R[k][k]``, in points; None for a single task.

    Lopez-Paz and Ranzato, "Gradient episodic memory for continual learning", NIPS 2017.
    """
    return _mean([_difference(_at(matrix, -1, k), _at(matrix, k, k)) for k in range(len(matrix) - 1)])


def _at(matrix: Matrix, t: int, k: int) -> float | None:
    return matrix[t][k] if k < len(matrix[t]) else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Sequence[float | None]) -> float | None:
    """None without values, or where one of them is missing."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there and len(there) == len(values) else None


METRICS: tuple[Metric, ...] = (
    Metric(
        "last_accuracy",
        heading="Last",
        title="Last",
        meaning="top-1 over all classes after the last task",
        unit="%",
        higher_is_better=True,
        function=last_accuracy,
        main=True,
        bars=Bars(
            "Last accuracy",
            "Last accuracy (%)",
            "Bars are means, whiskers one standard deviation, dots single runs.",
        ),
    ),
    Metric(
        "average_incremental_accuracy",
        heading="Inc",
        title="Inc",
        meaning="mean of the accuracies after each task",
        unit="%",
        higher_is_better=True,
        function=average_incremental_accuracy,
        main=True,
    ),
    Metric(
        "forgetting",
        heading="forgetting",
        title="Forgetting",
        meaning="mean loss on old tasks since their best",
        unit="pts",
        higher_is_better=False,
        function=forgetting,
        terminal_decimals=1,
        bars=Bars(
            "Forgetting",
            "forgetting (points)",
            "Points lost on old tasks since their best; lower is better.",
        ),
    ),
    Metric(
        "backward_transfer",
        heading="",
        title="Backward transfer",
        meaning="mean change on old tasks since learned",
        unit="pts",
        higher_is_better=True,
        function=backward_transfer,
    ),
    Metric(
        "train_images_per_second",
        heading="train img/s",
        title="Training",
        meaning="images per second of stage 1",
        unit="img/s",
        higher_is_better=True,
        function=None,
        decimals=1,
        terminal_decimals=0,
        card_decimals=0,
    ),
    Metric(
        "total_seconds",
        heading="seconds",
        title="Total time",
        meaning="wall time of the run",
        unit="s",
        higher_is_better=False,
        function=None,
        decimals=1,
        terminal_decimals=0,
    ),
    Metric(
        "peak_memory_bytes",
        heading="",
        title="Peak memory",
        meaning="largest memory in use",
        unit="GiB",
        higher_is_better=False,
        function=None,
        scale=2.0**30,
    ),
)
"""Every metric, in the order in which they are listed; adding one is adding a row."""


def metric_named(name: str) -> Metric:
    """The row of ``METRICS`` with this name."""
    return next(metric for metric in METRICS if metric.name == name)


def columns() -> list[Metric]:
    """The metrics that tables and the terminal show."""
    return [metric for metric in METRICS if metric.heading]


@dataclass(frozen=True)
class Confusion:
    """How often images of a class were taken for another, sparse: as many cells as images at most."""

    num_classes: int
    cell_K3: np.ndarray
    """True class, predicted class (positions in the class order) and number of images > 0, int64 ``[K, 3]``."""

    @staticmethod
    def counted(true_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> Confusion:
        """Of images with these class positions, int64 ``[N]``."""
        pair_K, count_K = np.unique(true_N * num_classes + predicted_N, return_counts=True)
        return Confusion(num_classes, np.stack([pair_K // num_classes, pair_K % num_classes, count_K], axis=1))

    def rows(self) -> Iterator[list[int]]:
        """Number of images by predicted class, for one true class after the other."""
        bounds = np.searchsorted(self.cell_K3[:, 0], np.arange(self.num_classes + 1)).tolist()
        for first, end in pairwise(bounds):
            row = [0] * self.num_classes
            for _, predicted, count in self.cell_K3[first:end].tolist():
                row[predicted] = count
            yield row


@dataclass(frozen=True)
class TaskResult:
    """Accuracy after one task."""

    accuracy: float
    """Top-1 over all seen classes' test images, percent."""
    top5: float
    """Top-5 likewise."""
    per_task: Curve
    """Top-1 on each seen task's test images, None without any: one row of the accuracy matrix R."""
    confusion: Confusion | None = field(default=None, repr=False)
    """Of the run's newest task only: nothing asks for earlier ones."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the confusion."""
        return {"accuracy": self.accuracy, "top5": self.top5, "per_task": list(self.per_task)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TaskResult:
        """The inverse of ``as_dict``; raises KeyError and ValueError naming the field that does not fit."""
        per_task = values["per_task"]
        if not isinstance(per_task, list):
            raise ValueError(f"per_task is {type(per_task).__name__}, not a list")
        return TaskResult(
            _percent(values, "accuracy"),
            _percent(values, "top5"),
            tuple(None if a is None else _percent({"per_task": a}, "per_task") for a in per_task),
        )


def _percent(values: Mapping[str, Any], name: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a percentage")
    return float(value)


def summary_metrics(results: Sequence[TaskResult]) -> dict[str, object]:
    """The metrics of a (possibly unfinished) stream that follow from its accuracies, and these accuracies."""
    curve, matrix = tuple(result.accuracy for result in results), accuracy_matrix(results)
    return {
        **{metric.name: metric.function(curve, matrix) for metric in METRICS if metric.function is not None},
        "accuracy_curve": list(curve),
        "top5_curve": [result.top5 for result in results],
        "accuracy_matrix": [list(row) for row in matrix],
    }


def accuracy_matrix(results: Sequence[TaskResult]) -> Matrix:
    """R, ``[T][T]``; None above the diagonal, and where a task has no test images."""
    rows = [[None if a is None or np.isnan(a) else float(a) for a in result.per_task] for result in results]
    return tuple((*row, *[None] * (len(results) - len(row))) for row in rows)
