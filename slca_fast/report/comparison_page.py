"""The page that compares runs, made from their folders alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from slca_fast import metrics
from slca_fast.files import replace_bytes
from slca_fast.metrics import Metric
from slca_fast.report import comparison_figures
from slca_fast.report.comparison import RunGroup, group_runs, rows_of
from slca_fast.report.drawing import Draw, png, svg
from slca_fast.report.pages import counted, render, shown


def compare_runs(run_dirs: list[Path], output: Path) -> Path:
    """Write one self-contained page that compares runs, and its curves as a PNG; returns the page's path.

    Runs that differ only in their seed form one group with mean and sample standard deviation. ``output`` is
    the page (a name ending in .html), or a folder to hold ``comparison.html``; the PNG lies beside it under the
    page's name. Unfinished runs are left out, and named on the page. Raises UserError when none is complete.
    """
    groups, notes = group_runs(run_dirs)
    output = Path(output)
    path = output if output.suffix.lower() in (".html", ".htm") else output / "comparison.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    curves = comparison_figures.curves(groups)
    replace_bytes(path.with_suffix(".png"), png(curves))
    phases = comparison_figures.phases(groups) if any(group.phases() for group in groups) else None
    figures = {
        "curves": _inline(curves, "curves", "Mean accuracy of every group after each task"),
        "phases": _inline(phases, "phases", "Mean seconds of every group by phase") if phases else "",
    }
    replace_bytes(path, render("comparison.html.j2", figures=figures, charts=_charts(groups), **_page(groups, notes)))
    return path


def _inline(draw: Draw, name: str, description: str) -> Markup:
    return Markup(svg(draw, name, description))


def _charts(groups: list[RunGroup]) -> list[dict[str, Any]]:
    """A bar chart of every metric that asks for one and that some group has."""
    charts = []
    for metric in metrics.METRICS:
        if metric.bars is None or all(group.spread(metric.name)[0] is None for group in groups):
            continue
        drawing = _inline(
            comparison_figures.bars(groups, metric), f"bars {metric.name}", f"{metric.bars.axis} of every group"
        )
        charts.append({"heading": metric.bars.heading, "note": metric.bars.note, "drawing": drawing})
    return charts


def _page(groups: list[RunGroup], notes: list[str]) -> dict[str, Any]:
    rows, columns = rows_of(groups), metrics.columns()
    best = {metric.name: _best(metric, rows) for metric in columns}
    main = [metric for metric in metrics.METRICS if metric.main]
    num_runs = sum(len(group.runs) for group in groups)
    return {
        "title": "Comparison of " + (f"{len(groups)} methods" if len(groups) > 1 else groups[0].label),
        "subtitle": f"{counted(num_runs, 'run')} in {counted(len(groups), 'group')}",
        "unfinished": False,
        "notes": notes,
        "columns": [metric.heading for metric in columns],
        "rows": [
            {
                "method": row["method"] if group.label == row["preset"] else group.label,
                "preset": row["preset"],
                "seeds": f"{row['num_runs']} ({', '.join(map(str, row['seeds']))})",
                "cells": [_cell(metric, row, best[metric.name]) for metric in columns],
            }
            for group, row in zip(groups, rows)
        ],
        "main_headings": [metric.title for metric in main],
        "runs": [
            {
                "group": group.label,
                "seed": shown(run.seed),
                "folder": str(run.folder),
                "main": [metric.text(run.metric(metric.name), metric.decimals) for metric in main],
            }
            for group in groups
            for run in group.runs
        ],
    }


def _best(metric: Metric, rows: list[dict[str, Any]]) -> float | None:
    """The best mean among the groups that have one; None where there is nothing to tell apart."""
    means = {mean for row in rows if (mean := row[f"{metric.name}_mean"]) is not None}
    if len(means) < 2:
        return None
    return max(means) if metric.higher_is_better else min(means)


def _cell(metric: Metric, row: dict[str, Any], best: float | None) -> dict[str, Any]:
    mean, std = row[f"{metric.name}_mean"], row[f"{metric.name}_std"]
    return {"text": metric.spread_text(mean, std, metric.decimals), "best": mean is not None and mean == best}
