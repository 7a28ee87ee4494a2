"""The page of one run, made from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from slca_fast import metrics
from slca_fast.files import replace_bytes
from slca_fast.metrics import ABSENT, Metric
from slca_fast.report import run_figures
from slca_fast.report.drawing import Draw, png, svg
from slca_fast.report.pages import counted, render, shown
from slca_fast.runs.reading import read_run
from slca_fast.runs.record import RunRecord

_FIGURES = ("accuracy_curve", "accuracy_matrix", "confusion", "loss", "phases", "throughput")
_MAX_PROBLEMS_SHOWN = 100
_MAX_TABLE_TASKS = 200
_MAX_NAMED_CELLS = 5


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and its PNGs into a run folder, from the files there; returns the report's path.

    The page is self-contained. A run in progress gives a report of what it has so far. The PNGs are
    accuracy_curve, accuracy_matrix, confusion, loss and phases, each only where there is something to draw.
    Raises UserError when the folder holds no run.
    """
    run = read_run(run_dir)
    drawings = _drawings(run)
    for name, (draw, _) in drawings.items():
        if name != "throughput":
            replace_bytes(run.folder / f"{name}.png", png(draw))
    figures = dict.fromkeys(_FIGURES, "")
    figures |= {name: Markup(svg(draw, name, description)) for name, (draw, description) in drawings.items()}
    path = run.folder / "report.html"
    replace_bytes(path, render("run.html.j2", figures=figures, **_page(run)))
    return path


def _drawings(run: RunRecord) -> dict[str, tuple[Draw, str]]:
    """By name, what there is to draw, with its description."""
    drawings: dict[str, tuple[Draw, str]] = {}
    if any(a is not None for a in run.curve):
        drawings["accuracy_curve"] = (
            run_figures.accuracy_curve(run),
            "Accuracy over all seen classes after each task",
        )
    if any(a is not None for row in run.matrix for a in row):
        drawings["accuracy_matrix"] = (
            run_figures.accuracy_matrix(run),
            "Accuracy on each task after each learned task",
        )
    if run.confusion_CC is not None:
        drawings["confusion"] = run_figures.confusion(run), "Confusion of true and predicted classes"
    if run.epochs or run.alignments:
        drawings["loss"] = run_figures.loss(run), "Training loss per epoch of every task"
    if run.phases():
        drawings["phases"] = run_figures.phases(run), "Seconds per phase"
    if any("images_per_second" in event for event in run.epochs):
        drawings["throughput"] = run_figures.throughput(run), "Training images per second in every epoch"
    return drawings


def _page(run: RunRecord) -> dict[str, Any]:
    summary = run.summary
    num_tasks = len(run.task_sizes) or len(run.curve)
    what = [f"preset {run.preset}", f"seed {shown(run.seed)}"]
    if num_tasks:
        what.append(f"{num_tasks} task{'s' if num_tasks > 1 else ''}")
    if run.class_names:
        what.append(f"{len(run.class_names)} classes")
    what += [shown(summary[key]) for key in ("device", "precision") if summary.get(key)]
    notes = list(run.notes)
    if not run.complete:
        done = f"{counted(len(run.curve), 'task')} evaluated so far" if run.curve else "no task is evaluated yet"
        notes.insert(0, f"This run is not finished: {done}.")
    if cells := (summary.get("data_problems") or {}).get("classes_without_images"):
        more = f" and {len(cells) - _MAX_NAMED_CELLS} more" if len(cells) > _MAX_NAMED_CELLS else ""
        notes.append(f"Empty from the start: {'; '.join(cells[:_MAX_NAMED_CELLS])}{more}.")
    recorded = sum(s for name, s in run.phases().items() if name != "other")
    total = run.metric("total_seconds")
    overlapping = total is not None and recorded > 1.01 * total
    return {
        "title": run.method if run.method != "run" else f"Run {run.folder.name}",
        "subtitle": " · ".join(what),
        "unfinished": not run.complete,
        "status": "complete" if run.complete else "in progress",
        "notes": notes,
        "numbers": [_card(run, metric) for metric in metrics.METRICS],
        # The square of the tasks: accuracy_matrix.csv has it whole.
        "matrix": _padded([[_fixed(a, 1) for a in row] for row in run.matrix])
        if len(run.matrix) <= _MAX_TABLE_TASKS
        else [],
        "mistakes": _mistakes(run),
        "phase_note": "Phases overlap, so they add up to more than the total." if overlapping else "",
        "backends": _backends(summary),
        "machine": _machine(summary),
        "problem_summary": _problem_summary(run),
        "problems": _problem_table(run),
        "config_text": run.config_text,
    }


def _card(run: RunRecord, metric: Metric) -> dict[str, Any]:
    value = run.metric(metric.name)
    # A metric that the accuracies do not define will never be measured.
    undefined = metric.function is not None and run.curve
    timed = metric.unit == "s"
    return {
        "name": metric.title,
        "value": None if value is None else _duration(value) if timed else metric.text(value, metric.card_decimals),
        "absent": ABSENT if undefined else "not measured",
        "unit": "" if timed else f" {metric.unit}",
        "meaning": metric.meaning,
        "main": metric.main,
    }


def _mistakes(run: RunRecord) -> list[dict[str, Any]]:
    if run.confusion_CC is None:
        return []
    wrong_CC = run.confusion_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    totals_C = run.confusion_CC.sum(axis=1)
    names = run.class_names
    if len(names) < len(wrong_CC):
        names = [f"class {i}" for i in range(len(wrong_CC))]
    largest = np.argsort(-wrong_CC, axis=None, kind="stable")[:6]
    pairs = [divmod(int(flat), len(wrong_CC)) for flat in largest]
    return [
        {
            "true": names[i],
            "predicted": names[j],
            "count": f"{wrong_CC[i, j]:,.0f}",
            "share": f"{100 * wrong_CC[i, j] / totals_C[i]:.1f}%",
        }
        for i, j in pairs
        if wrong_CC[i, j] > 0
    ]


def _backends(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    backends, reasons = summary.get("backends") or {}, summary.get("backend_reasons") or {}
    return [(part, shown(name), shown(reasons.get(part, ""))) for part, name in backends.items()]


def _machine(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name.replace("_", " "), shown(summary.get(name))) for name in ("device", "cpu_threads", "precision")]
    rows += [(name, shown(version)) for name, version in (summary.get("versions") or {}).items()]
    return [*rows, ("weights SHA-256", shown(summary.get("weights_sha256")))]


def _problem_summary(run: RunRecord) -> str:
    recorded = run.summary.get("data_problems")
    if recorded is None:
        return "Not recorded." if not run.problems else f"{len(run.problems)} found."
    quarantined = recorded.get("quarantined")
    if not quarantined and not run.problems:
        return "None found."
    return f"{counted(quarantined, 'file') if quarantined else 'Files'} left out of the run."


def _problem_table(run: RunRecord) -> dict[str, Any]:
    first = run.problems[:_MAX_PROBLEMS_SHOWN]
    dicts = [p if isinstance(p, dict) else {"problem": p} for p in first]
    columns = list(dict.fromkeys(key for p in dicts for key in p))
    rows = [[shown(p.get(name, "")) for name in columns] for p in dicts]
    return {"columns": columns, "rows": rows, "num_more": len(run.problems) - len(first)}


def _fixed(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _padded(rows: list[list[str]]) -> list[list[str]]:
    width = max(map(len, rows), default=0)
    return [row + [""] * (width - len(row)) for row in rows]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
