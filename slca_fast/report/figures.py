"""The figures of the reports: each saved as a light PNG and as an inline SVG that follows the theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slca_fast.report.comparison import RunGroup
from slca_fast.runs.record import RunRecord

_SERIES_LIGHT = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#db2777", "#4d7c0f")
_LINE_STYLES = ("-", "--", ":", "-.")
_WIDTH_INCHES = 5.6
_MAX_NAMED_CLASSES = 24
_MAX_NUMBERED_TASKS = 20


@dataclass(frozen=True)
class Theme:
    """Colours by role."""

    text: str
    muted: str
    grid: str
    background: str
    series: tuple[str, ...]


PNG_THEME = Theme("#1f2937", "#6b7280", "#e5e7eb", "#ffffff", _SERIES_LIGHT)
# placeholder colours, each replaced by a CSS variable in the SVG so that one drawing serves light and dark
SVG_THEME = Theme("#a1e001", "#a1e002", "#a1e003", "none", tuple(f"#a1e1{i:02x}" for i in range(len(_SERIES_LIGHT))))
_CSS_VARIABLES = {
    SVG_THEME.text: "var(--text)",
    SVG_THEME.muted: "var(--muted)",
    SVG_THEME.grid: "var(--grid)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SVG_THEME.series)},
}
# transparent at 0: the low end is whatever the page's background is
_HEAT = LinearSegmentedColormap.from_list(
    "heat", [(0.0, (0.38, 0.60, 0.98, 0.0)), (0.5, (0.23, 0.47, 0.95, 0.5)), (1.0, (0.11, 0.25, 0.69, 1.0))]
)
_WHITE_TEXT_FROM = 0.72  # share of the colour scale from which white is the more readable text in both themes
# in points, since an SVG drops leading blanks
_BESIDE = {"xytext": (5, 0), "textcoords": "offset points"}

Draw = Callable[[Theme], Figure]


def png(draw: Draw) -> bytes:
    """The figure on white at 160 dots per inch; the same bytes for the same run."""
    buffer = io.BytesIO()
    with _style(PNG_THEME):
        figure = draw(PNG_THEME)
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def svg(draw: Draw, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element without URLs, coloured by the page's CSS variables.

    ``name`` keeps the ids of several figures on one page apart; ``description`` must be escaped already.
    """
    buffer = io.StringIO()
    with _style(SVG_THEME, name):
        figure = draw(SVG_THEME)
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"[ \t]*\n\s*", "\n", body)
    for colour, variable in _CSS_VARIABLES.items():
        body = body.replace(colour, variable)
    return f'<svg viewBox="{view_box[1]}" role="img" aria-label="{description}">{body}'


def _style(theme: Theme, salt: str = ""):
    settings = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "text.color": theme.text,
        "text.parse_math": False,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "axes.titlesize": 10,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "legend.frameon": False,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.constrained_layout.h_pad": 0.08,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "lines.linewidth": 1.8,
    }
    return _Quiet(matplotlib.style.context(["default", settings]))


class _Quiet:
    """A style context in which a class name with a glyph that the font lacks is no warning."""

    def __init__(self, style) -> None:
        self._style, self._warnings = style, warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        self._style.__enter__()

    def __exit__(self, *error) -> None:
        self._style.__exit__(*error)
        self._warnings.__exit__(*error)


def _figure(height_inches: float, **axes) -> tuple[Figure, Axes | np.ndarray]:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots(**axes)


def _as_array(values) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _percent_axis(axes: Axes, lowest: float) -> None:
    bottom = max(0.0, 10 * np.floor((lowest - 4) / 10)) if np.isfinite(lowest) else 0.0
    axes.set_ylim(bottom, 102)
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100])
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _task_positions(num_tasks: int, classes_seen: tuple[int, ...] | None) -> tuple[np.ndarray, str]:
    if classes_seen is None:
        return np.arange(1, num_tasks + 1), "tasks learned"
    return np.array(classes_seen[:num_tasks]), "classes seen"


def _position_ticks(axes: Axes, x: np.ndarray) -> None:
    step = max(1, -(-len(x) // 12))
    axes.set_xticks(x[len(x) - 1 :: -step][::-1])
    if len(x) == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)


def accuracy_curve(run: RunRecord) -> Draw:
    """Top-1 and top-5 over all seen classes after each task, with Last and Inc marked."""

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(3.3)
        curve = _as_array(run.curve)
        x, label = _task_positions(len(curve), run.classes_seen)
        top5 = _as_array(run.top5_curve)
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
        _percent_axis(axes, np.nanmin(np.append(curve, np.nan if inc is None else inc)))
        _position_ticks(axes, x)
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
            matrix_TT[t, : len(row)] = _as_array(row)
        low = max(0.0, 10 * np.floor(np.nanmin(matrix_TT) / 10) - 10)
        figure, axes = _figure(4.9)
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
        figure, axes = _figure(5.2)
        axes.imshow(np.sqrt(share_CC), cmap=_HEAT, vmin=0, vmax=1, interpolation="none")
        names = run.class_names
        if num_classes <= _MAX_NAMED_CLASSES and len(names) >= num_classes:
            names = [name if len(name) <= 18 else name[:17] + "…" for name in names[:num_classes]]
            size = min(9.0, 130 / num_classes)
            upright = num_classes <= 12 and max(map(len, names)) <= 3
            axes.set_xticks(range(num_classes), names, rotation=0 if upright else 90, fontsize=size)
            axes.set_yticks(range(num_classes), names, fontsize=size)
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
        figure, grid = _figure(0.6 + 2.1 * len(panels), nrows=len(panels), squeeze=False)
        for axes, (events, label, colour) in zip(grid[:, 0], panels):
            _draw_by_task(axes, events, "loss", colour, theme)
            axes.set_ylabel(label)
            bottom, top = axes.get_ylim()
            if bottom > 0 and top > 30 * bottom:
                axes.set_yscale("log")
            elif bottom < 0 <= min(e.get("loss") or 0 for e in events):
                axes.set_ylim(bottom=0)
        grid[-1, 0].set_xlabel("epochs of all tasks, one band per task")
        return figure

    return draw


def throughput(run: RunRecord) -> Draw:
    """Training images per second of every epoch."""

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(2.7)
        _draw_by_task(axes, run.epochs, "images_per_second", theme.series[2], theme)
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax if axes.dataLim.ymax > 0 else 1)
        axes.set_ylabel("training images / s")
        axes.set_xlabel("epochs of all tasks, one band per task")
        return figure

    return draw


def _draw_by_task(axes: Axes, events: tuple[dict, ...], name: str, colour: str, theme: Theme) -> None:
    tasks = sorted({int(event["task"]) for event in events})
    start = 0
    for i, task in enumerate(tasks):
        values = _as_array([event.get(name) for event in events if int(event["task"]) == task])
        values[~np.isfinite(values)] = np.nan
        few = len(values) <= 12 and len(events) <= 120
        axes.plot(
            start + 0.5 + np.arange(len(values)),
            values,
            color=colour,
            linewidth=1.6,
            marker="o" if few else None,
            markersize=2.8,
        )
        if i % 2:
            axes.axvspan(start, start + len(values), color=theme.muted, alpha=0.09, linewidth=0)
        if i % max(1, -(-len(tasks) // 15)) == 0:
            axes.text(
                start + len(values) / 2,
                1.01,
                f"{'task ' if i == 0 and len(tasks) <= 6 else ''}{task + 1}",
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
        figure, axes = _figure(0.8 + 0.34 * len(seconds))
        total = run.metric("total_seconds") or sum(seconds.values()) or 1.0
        names = list(seconds)
        colours = [_phase_colour(name, i, theme) for i, name in enumerate(names)]
        axes.barh(names, list(seconds.values()), color=colours, height=0.66)
        for i, value in enumerate(seconds.values()):
            axes.annotate(
                f"{value:,.1f} s · {100 * value / total:.0f}%",
                (value, i),
                **_BESIDE,
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


def _phase_colour(name: str, place: int, theme: Theme) -> str:
    return theme.muted if name == "other" else theme.series[place % len(theme.series)]


def _group_style(place: int, theme: Theme) -> dict:
    count = len(theme.series)
    return {
        "color": theme.series[place % count],
        "linestyle": _LINE_STYLES[place // count % len(_LINE_STYLES)],
    }


def comparison_curves(groups: list[RunGroup]) -> Draw:
    """Mean accuracy after each task of every group, with a band of one standard deviation."""

    def draw(theme: Theme) -> Figure:
        in_classes = all(run.classes_seen is not None for group in groups for run in group.runs)
        figure, axes = _figure(3.4 + 0.2 * -(-len(groups) // 3))
        lowest, longest, label = 100.0, np.zeros(0), ""
        for i, group in enumerate(groups):
            spreads = group.curve()
            mean, std = _as_array([m for m, _ in spreads]), np.nan_to_num(_as_array([s for _, s in spreads]))
            x, label = _task_positions(len(mean), group.runs[0].classes_seen if in_classes else None)
            longest = x if len(x) > len(longest) else longest
            style = _group_style(i, theme)
            axes.plot(x, mean, marker="o", markersize=4, label=_short(group.label), **style)
            axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.18, linewidth=0)
            lowest = min(lowest, np.nanmin(mean - std))
        _percent_axis(axes, lowest)
        _position_ticks(axes, longest)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy (%)")
        widest = max(len(_short(group.label)) for group in groups)
        figure.legend(loc="outside upper center", ncols=max(1, min(3, 66 // (widest + 6))), handlelength=1.8)
        return figure

    return draw


def comparison_bars(groups: list[RunGroup], metric: str, label: str) -> Draw:
    """One number of every group: mean as a bar, deviation as a whisker, each run as a dot."""

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(0.8 + 0.42 * len(groups))
        for i, group in enumerate(groups):
            mean, std = group.spread(metric)
            if mean is None:
                axes.annotate("not measured", (0, i), **_BESIDE, va="center", color=theme.muted, fontsize=8.5)
                continue
            axes.barh(i, mean, color=_group_style(i, theme)["color"], height=0.62, alpha=0.85)
            if std is not None:
                axes.errorbar(mean, i, xerr=std, color=theme.text, capsize=3, linewidth=1.2)
            values = [v for run in group.runs if (v := run.metric(metric)) is not None]
            axes.plot(values, np.full(len(values), i), "o", color=theme.text, markersize=2.8, alpha=0.7)
            end = max([mean + (std or 0.0), 0.0, *values])
            axes.annotate(
                f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else ""),
                (end, i),
                **_BESIDE,
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


def comparison_phases(groups: list[RunGroup]) -> Draw:
    """Mean seconds of every group, stacked by phase."""

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(1.3 + 0.42 * len(groups))
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
                color=_phase_colour(name, i, theme),
            )
            left += seconds
        for i, total in enumerate(left):
            axes.annotate(f"{total:,.1f} s", (total, i), **_BESIDE, va="center", fontsize=8.5, color=theme.text)
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
