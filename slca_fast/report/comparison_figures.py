"""The figures of a comparison's page."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from slca_fast.metrics import ABSENT, Metric
from slca_fast.report.axes import (
    BESIDE,
    as_array,
    new_figure,
    percent_axis,
    phase_colour,
    position_ticks,
    task_positions,
)
from slca_fast.report.comparison import RunGroup, mean_and_std
from slca_fast.report.drawing import Draw, Theme

_LINE_STYLES = ("-", "--", ":", "-.")


def _group_style(place: int, theme: Theme) -> dict:
    count = len(theme.series)
    return {
        "color": theme.series[place % count],
        "linestyle": _LINE_STYLES[place // count % len(_LINE_STYLES)],
    }


def curves(groups: list[RunGroup]) -> Draw:
    """Mean accuracy after each task of every group, with a band of one standard deviation."""

    def draw(theme: Theme) -> Figure:
        in_classes = all(run.classes_seen is not None for group in groups for run in group.runs)
        figure, axes = new_figure(3.4 + 0.2 * -(-len(groups) // 3))
        lowest, longest, label = 100.0, np.zeros(0), ""
        for i, group in enumerate(groups):
            spreads = group.curve()
            mean, std = as_array([m for m, _ in spreads]), np.nan_to_num(as_array([s for _, s in spreads]))
            x, label = task_positions(len(mean), group.runs[0].classes_seen if in_classes else None)
            longest = x if len(x) > len(longest) else longest
            style = _group_style(i, theme)
            axes.plot(x, mean, marker="o", markersize=4, label=_short(group.label), **style)
            axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.18, linewidth=0)
            lowest = min(lowest, np.nanmin(mean - std))
        percent_axis(axes, lowest)
        position_ticks(axes, longest)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy (%)")
        widest = max(len(_short(group.label)) for group in groups)
        figure.legend(loc="outside upper center", ncols=max(1, min(3, 66 // (widest + 6))), handlelength=1.8)
        return figure

    return draw


def bars(groups: list[RunGroup], metric: Metric) -> Draw:
    """A metric that has ``bars``, of every group: mean as a bar, deviation as a whisker, each run as a dot."""
    assert metric.bars is not None
    label = metric.bars.axis

    def draw(theme: Theme) -> Figure:
        figure, axes = new_figure(0.8 + 0.42 * len(groups))
        for i, group in enumerate(groups):
            values = [v / metric.scale for run in group.runs if (v := run.metric(metric.name)) is not None]
            mean, std = mean_and_std(values)
            if mean is None:
                axes.annotate(ABSENT, (0, i), **BESIDE, va="center", color=theme.muted, fontsize=8.5)
                continue
            axes.barh(i, mean, color=_group_style(i, theme)["color"], height=0.62, alpha=0.85)
            if std is not None:
                axes.errorbar(mean, i, xerr=std, color=theme.text, capsize=3, linewidth=1.2)
            axes.plot(values, np.full(len(values), i), "o", color=theme.text, markersize=2.8, alpha=0.7)
            axes.annotate(
                metric.spread_text(*group.spread(metric.name), metric.decimals),
                (max([mean + (std or 0.0), 0.0, *values]), i),
                **BESIDE,
                va="center",
                fontsize=8.5,
                color=theme.text,
            )
        axes.set_yticks(range(len(groups)), [_short(group.label) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0), high + 0.28 * (high - min(low, 0)))
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)
        return figure

    return draw


def phases(groups: list[RunGroup]) -> Draw:
    """Mean seconds of every group, stacked by phase."""

    def draw(theme: Theme) -> Figure:
        figure, axes = new_figure(1.3 + 0.42 * len(groups))
        per_group = [group.phases() for group in groups]
        names = sorted(dict.fromkeys(n for phases in per_group for n in phases), key=lambda n: n == "other")
        left = np.zeros(len(groups))
        for i, name in enumerate(names):
            seconds = np.array([phases.get(name, 0.0) for phases in per_group])
            axes.barh(
                range(len(groups)),
                seconds,
                left=left,
                label=name,
                height=0.62,
                color=phase_colour(name, i, theme),
            )
            left += seconds
        for i, total in enumerate(left):
            axes.annotate(f"{total:,.1f} s", (total, i), **BESIDE, va="center", fontsize=8.5, color=theme.text)
        axes.set_yticks(range(len(groups)), [_short(group.label) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(0, 1.22 * (left.max() or 1.0))
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds, mean of the group")
        figure.legend(loc="outside upper center", ncols=4, handlelength=1.0, columnspacing=1.2)
        return figure

    return draw


def _short(label: str) -> str:
    return label if len(label) <= 30 else label[:29] + "…"
