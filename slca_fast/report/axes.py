"""What the figures have in common: their width, a percent axis, positions of tasks, colours of phases."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slca_fast.report.drawing import Theme

_WIDTH_INCHES = 5.6
# in points, since an SVG drops leading blanks
BESIDE = {"xytext": (5, 0), "textcoords": "offset points"}


def new_figure(height_inches: float, **axes) -> tuple[Figure, Axes | np.ndarray]:
    """A figure of the page's width, and its axes."""
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots(**axes)


def as_array(values) -> np.ndarray:
    """The numbers as float64, NaN for None."""
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def percent_axis(axes: Axes, lowest: float) -> None:
    """The y axis in percent, from the ten below ``lowest`` to 100."""
    bottom = max(0.0, 10 * np.floor((lowest - 4) / 10)) if np.isfinite(lowest) else 0.0
    axes.set_ylim(bottom, 102)
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100])
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def task_positions(num_tasks: int, classes_seen: tuple[int, ...] | None) -> tuple[np.ndarray, str]:
    """Where each task stands on the x axis, and that axis's label."""
    if classes_seen is None:
        return np.arange(1, num_tasks + 1), "tasks learned"
    return np.array(classes_seen[:num_tasks]), "classes seen"


def position_ticks(axes: Axes, x: np.ndarray) -> None:
    """Ticks at about a dozen of the positions, the last one among them."""
    step = max(1, -(-len(x) // 12))
    axes.set_xticks(x[len(x) - 1 :: -step][::-1])
    if len(x) == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)


def phase_colour(name: str, place: int, theme: Theme) -> str:
    """The colour of a run's phase, by its place in their order."""
    return theme.muted if name == "other" else theme.series[place % len(theme.series)]
