"""The figures of one run's page."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slca_fast.report.axes import (
    BESIDE,
    as_array,
    new_figure,
    panels_figure,
    percent_axis,
    phase_colour,
    position_ticks,
    task_positions,
)
from slca_fast.report.drawing import Draw, Theme
from slca_fast.runs.record import RunRecord

_MAX_NAMED_CLASSES = 24
_MAX_NUMBERED_TASKS = 20
_MAX_BANDS = 200
# transparent at 0: the low end is whatever the page's background is
_HEAT = LinearSegmentedColormap.from_list(
    "heat", [(0.0, (0.38, 0.60, 0.98, 0.0)), (0.5, (0.23, 0.47, 0.95, 0.5)), (1.0, (0.11, 0.25, 0.69, 1.0))]
)
_WHITE_TEXT_FROM = 0.72  # share of the colour scale from which white is the more readable text in both themes


def accuracy_curve(run: RunRecord) -> Draw:
    """Top-1 and top-5 over all seen classes after each task, with Last and Inc marked."""

    def draw(theme: Theme) -> Figure:
        figure, axes = new_figure(3.3)
        curve = as_array(run.curve)
        x, label = task_positions(len(curve), run.classes_seen)
        top5 = as_array(run.top5_curve)
        if len(top5) == len(curve) and np.isfinite(top5).any():
            axes.plot(x, top5, "s--", color=theme.muted, markersize=3.5, linewidth=1.3, label="top-5")
        axes.plot(x, curve, "o-", color=theme.series[0], markersize=5, label="top-1")
        inc = run.metric("average_incremental_accuracy")
        if inc is not None:
            axes.axhline(inc, color=theme.series[1], linestyle=(0, (4, 3)), linewidth=1.3, label=f"Inc {inc:.2f}")
        last = run.metric("last_accuracy")
        if last is not None:
            axes.plot(
                x[-1:],
                [last],
                "o",
                markersize=11,
                markerfacecolor="none",
                markeredgewidth=1.8,
                color=theme.series[3],
                label=f"Last {last:.2f}",
            )
        percent_axis(axes, np.nanmin(np.append(curve, np.nan if inc is None else inc)))
        position_ticks(axes, x)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy (%)")
        figure.legend(loc="outside upper center", ncols=4, handlelength=1.8, columnspacing=1.4)
        return figure

    return draw


def accuracy_matrix(run: RunRecord) -> Draw:
    """Heat map of the accuracy on each task (column) after each task (row)."""

    def draw(theme: Theme) -> Figure:
        num_tasks = max(len(run.matrix), *(len(row) for row in run.matrix))
        matrix_TT = np.full((num_tasks, num_tasks), np.nan)
        for t, row in enumerate(run.matrix):
            matrix_TT[t, : len(row)] = as_array(row)
        low = max(0.0, 10 * np.floor(np.nanmin(matrix_TT) / 10) - 10)
        figure, axes = new_figure(4.9)
        axes.imshow(matrix_TT, cmap=_HEAT, vmin=low, vmax=100, interpolation="none")
        if num_tasks <= _MAX_NUMBERED_TASKS:
            _write_cells(axes, matrix_TT, low, theme)
        ticks = np.arange(0, num_tasks, max(1, -(-num_tasks // 20)))
        axes.set_xticks(ticks, [str(t + 1) for t in ticks])
        axes.set_yticks(ticks, [str(t + 1) for t in ticks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("accuracy (%) on task")
        axes.set_ylabel("after learning task")
        _colour_bar(axes, np.linspace(low, 100, 256), [low, (low + 100) / 2, 100], "{:.0f}".format)
        return figure

    return draw


def _write_cells(axes: Axes, matrix_TT: np.ndarray, low: float, theme: Theme) -> None:
    num_tasks = len(matrix_TT)
    decimals, size = (1, min(10.0, 76 / num_tasks)) if num_tasks <= 10 else (0, min(8.0, 130 / num_tasks))
    for (t, k), value in np.ndenumerate(matrix_TT):
        if np.isfinite(value):
            white = (value - low) / (100 - low) >= _WHITE_TEXT_FROM
            axes.text(
                k,
                t,
                f"{value:.{decimals}f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if white else theme.text,
            )


def _colour_bar(axes: Axes, scale: np.ndarray, ticks: list[float], write: Callable[[float], str]) -> None:
    bar = axes.inset_axes((1.03, 0.0, 0.035, 1.0))
    bar.imshow(
        scale[:, None],
        cmap=_HEAT,
        aspect="auto",
        origin="lower",
        interpolation="none",
        extent=(0, 1, scale[0], scale[-1]),
    )
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.set_yticks(ticks, [write(t) for t in ticks])
    bar.tick_params(length=0)


def confusion(run: RunRecord) -> Draw:
    """True class (row) against predicted class (column), as a share of the row; square-root colours."""
    assert run.confusion_CC is not None
    counts_CC = run.confusion_CC

    def draw(theme: Theme) -> Figure:
        num_classes = len(counts_CC)
        totals_C = counts_CC.sum(axis=1, keepdims=True)
        share_CC = np.divide(counts_CC, totals_C, out=np.full(counts_CC.shape, np.nan), where=totals_C > 0)
        figure, axes = new_figure(5.2)
        axes.imshow(np.sqrt(share_CC), cmap=_HEAT, vmin=0, vmax=1, interpolation="none")
        # Folders may have names that are no text, which no font can draw.
        names = [name.encode(errors="backslashreplace").decode() for name in run.class_names]
        if num_classes <= _MAX_NAMED_CLASSES and len(names) >= num_classes:
            names = [name if len(name) <= 18 else name[:17] + "…" for name in names[:num_classes]]
            size = min(9.0, 130 / num_classes)
            upright = num_classes <= 12 and max(map(len, names)) <= 3
            axes.set_xticks(range(num_classes), names, rotation=0 if upright else 90, fontsize=size, parse_math=False)
            axes.set_yticks(range(num_classes), names, fontsize=size, parse_math=False)
        else:
            locate = MaxNLocator(8, integer=True)
            ticks = [t for t in locate.tick_values(0, num_classes - 1) if 0 <= t < num_classes]
            axes.set_xticks(ticks)
            axes.set_yticks(ticks)
        if num_classes <= 12:
            for (row, column), share in np.ndenumerate(share_CC):
                if share > 0:
                    axes.text(
                        column,
                        row,
                        f"{counts_CC[row, column]:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color="white" if np.sqrt(share) >= _WHITE_TEXT_FROM else theme.text,
                    )
        if run.classes_seen is not None and run.classes_seen[-1] == num_classes and len(run.task_sizes) <= 60:
            for edge in run.classes_seen[:-1]:
                axes.axhline(edge - 0.5, color=theme.muted, linewidth=0.5, alpha=0.5)
                axes.axvline(edge - 0.5, color=theme.muted, linewidth=0.5, alpha=0.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        axes.set_xlabel("predicted class, in the order learned")
        axes.set_ylabel("true class")
        _colour_bar(
            axes,
            np.linspace(0, 1, 256),
            [0, np.sqrt(0.05), 0.5, np.sqrt(0.5), 1],
            lambda root: f"{100 * root * root:.0f}%",
        )
        return figure

    return draw


def loss(run: RunRecord) -> Draw:
    """Training loss over all epochs, task after task; below it the loss of the classifier alignment."""

    def draw(theme: Theme) -> Figure:
        panels = [(run.epochs, "fine-tuning loss", theme.series[0])] if run.epochs else []
        if run.alignments:
            panels.append((run.alignments, "alignment loss", theme.series[4]))
        figure, grid = panels_figure(0.6 + 2.1 * len(panels), len(panels))
        for axes, (events, label, colour) in zip(grid, panels):
            _draw_by_task(axes, events, "loss", colour, theme)
            axes.set_ylabel(label)
            bottom, top = axes.get_ylim()
            if bottom > 0 and top > 30 * bottom:
                axes.set_yscale("log")
            elif bottom < 0 <= min(e.get("loss") or 0 for e in events):
                axes.set_ylim(bottom=0)
        grid[-1].set_xlabel("epochs of all tasks, one band per task")
        return figure

    return draw


def throughput(run: RunRecord) -> Draw:
    """Training images per second of every epoch."""

    def draw(theme: Theme) -> Figure:
        figure, axes = new_figure(2.7)
        _draw_by_task(axes, run.epochs, "images_per_second", theme.series[2], theme)
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax if axes.dataLim.ymax > 0 else 1)
        axes.set_ylabel("training images / s")
        axes.set_xlabel("epochs of all tasks, one band per task")
        return figure

    return draw


def _draw_by_task(axes: Axes, events: tuple[dict, ...], name: str, colour: str, theme: Theme) -> None:
    by_task = {task: list(group) for task, group in groupby(events, lambda event: event["task"])}
    start = 0
    for i, (task, of_task) in enumerate(by_task.items()):
        values = as_array([event.get(name) for event in of_task])
        few = len(values) <= 12 and len(events) <= 120
        axes.plot(
            start + 0.5 + np.arange(len(values)),
            values,
            color=colour,
            linewidth=1.6,
            marker="o" if few else None,
            markersize=2.8,
        )
        if i % 2 and len(by_task) <= _MAX_BANDS:
            axes.axvspan(start, start + len(values), color=theme.muted, alpha=0.09, linewidth=0)
        if i % max(1, -(-len(by_task) // 15)) == 0:
            axes.text(
                start + len(values) / 2,
                1.01,
                f"{'task ' if i == 0 and len(by_task) <= 6 else ''}{task + 1}",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8,
                color=theme.muted,
            )
        start += len(values)
    axes.set_xlim(0, max(start, 1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def phases(run: RunRecord) -> Draw:
    """Seconds per phase."""
    seconds = run.phases()

    def draw(theme: Theme) -> Figure:
        figure, axes = new_figure(0.8 + 0.34 * len(seconds))
        total = run.metric("total_seconds") or sum(seconds.values()) or 1.0
        names = list(seconds)
        colours = [phase_colour(name, i, theme) for i, name in enumerate(names)]
        axes.barh(names, list(seconds.values()), color=colours, height=0.66)
        for i, value in enumerate(seconds.values()):
            axes.annotate(
                f"{value:,.1f} s · {100 * value / total:.0f}%",
                (value, i),
                **BESIDE,
                va="center",
                fontsize=8.5,
                color=theme.text,
            )
        axes.invert_yaxis()
        axes.set_xlim(0, 1.32 * (max(seconds.values()) or 1.0))
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds")
        return figure

    return draw
