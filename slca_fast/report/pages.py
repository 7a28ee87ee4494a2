"""Reports made from run folders alone: one run as report.html and PNGs, or several runs compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table

from slca_fast.files import replace_bytes
from slca_fast.report.comparison import RunGroup, group_runs, rows_of
from slca_fast.runs.record import RunRecord, read_run

if TYPE_CHECKING:
    from slca_fast.report.figures import Draw

_MAX_PROBLEMS_SHOWN = 100
_ABSENT = "–"


@dataclass(frozen=True)
class _Column:
    heading: str
    metric: str
    decimals: int
    higher_is_better: bool
    shown: int = 2
    """Decimals in the terminal."""


_COLUMNS = (
    _Column("Last", "last_accuracy", 2, True),
    _Column("Inc", "average_incremental_accuracy", 2, True),
    _Column("forgetting", "forgetting", 2, False, 1),
    _Column("train img/s", "train_images_per_second", 1, True, 0),
    _Column("seconds", "total_seconds", 1, False, 0),
)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and its PNGs into a run folder, from the files there; returns the report's path.

    The page is self-contained. A run in progress gives a report of what it has so far. The PNGs are
    accuracy_curve, accuracy_matrix, confusion, loss and phases, each only where there is something to draw.
    Raises UserError when the folder holds no run.
    """
    from slca_fast.report import figures  # here, so that terminal tables need no matplotlib

    run = read_run(run_dir)
    draws: dict[str, tuple[Draw, str]] = {}
    if any(a is not None for a in run.curve):
        draws["accuracy_curve"] = (
            figures.accuracy_curve(run),
            "Accuracy over all seen classes after each task",
        )
    if any(a is not None for row in run.matrix for a in row):
        draws["accuracy_matrix"] = (
            figures.accuracy_matrix(run),
            "Accuracy on each task after each learned task",
        )
    if run.confusion_CC is not None:
        draws["confusion"] = figures.confusion(run), "Confusion of true and predicted classes"
    if run.epochs or run.alignments:
        draws["loss"] = figures.loss(run), "Training loss per epoch of every task"
    if run.phases():
        draws["phases"] = figures.phases(run), "Seconds per phase"
    for name, (draw, _) in draws.items():
        _write(run.folder / f"{name}.png", figures.png(draw))
    if any("images_per_second" in event for event in run.epochs):
        draws["throughput"] = figures.throughput(run), "Training images per second in every epoch"
    path = run.folder / "report.html"
    page = _render("run.html.j2", figures=_svgs(draws), **_run_page(run))
    _write(path, page.encode())
    return path


def compare_runs(run_dirs: list[Path], output: Path) -> Path:
    """Write one self-contained page that compares runs, and its curves as a PNG; returns the page's path.

    Runs that differ only in their seed form one group with mean and sample standard deviation. ``output`` is
    the page (a name ending in .html), or a folder to hold ``comparison.html``; the PNG lies beside it under the
    page's name. Unfinished runs are left out, and named on the page. Raises UserError when none is complete.
    """
    from slca_fast.report import figures  # here, so that terminal tables need no matplotlib

    groups, notes = group_runs(run_dirs)
    output = Path(output)
    path = output if output.suffix.lower() in (".html", ".htm") else output / "comparison.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = {"curves": (figures.comparison_curves(groups), "Mean accuracy of every group after each task")}
    for name, metric, label in (
        ("last", "last_accuracy", "Last accuracy (%)"),
        ("forgetting", "forgetting", "forgetting (points)"),
    ):
        if any(group.spread(metric)[0] is not None for group in groups):
            draws[name] = figures.comparison_bars(groups, metric, label), f"{label} of every group"
    if any(group.phases() for group in groups):
        draws["phases"] = figures.comparison_phases(groups), "Mean seconds of every group by phase"
    _write(path.with_suffix(".png"), figures.png(draws["curves"][0]))
    page = _render("comparison.html.j2", figures=_svgs(draws), **_comparison_page(groups, notes))
    _write(path, page.encode())
    return path


def comparison_rows(run_dirs: list[Path]) -> list[dict[str, Any]]:
    """One dict per group of runs that differ only in their seed, in the order given.

    Keys: label, method, preset, num_runs, seeds, and ``<metric>_mean`` and ``<metric>_std`` for
    last_accuracy, average_incremental_accuracy, forgetting, backward_transfer (percent), train_images_per_second,
    total_seconds and peak_memory_bytes. The deviation is the sample one (n - 1); None with one run, as is what
    no run measured.
    Raises UserError when no run is complete.
    """
    return rows_of(group_runs(run_dirs)[0])


def comparison_table(run_dirs: list[Path]) -> Table:
    """The rows of :func:`comparison_rows` for the terminal: mean ± sample standard deviation over seeds."""
    groups, notes = group_runs(run_dirs)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="\n".join(notes) or None, caption_justify="left")
    rows = rows_of(groups)
    # Presets are told only where two rows have the same method: eighty columns must do.
    told = len({row["method"] for row in rows}) < len(rows)
    table.add_column("preset" if told else "method", no_wrap=True)
    table.add_column("n", justify="right")
    for column in _COLUMNS:
        table.add_column(column.heading.removeprefix("train "), justify="right", no_wrap=True)
    for row in rows:
        cells = [_mean_std(row, replace(column, decimals=min(column.decimals, column.shown))) for column in _COLUMNS]
        table.add_row(*(_plain(text) for text in (row["preset" if told else "method"], row["num_runs"], *cells)))
    return table


def _plain(value: Any) -> Any:
    from rich.text import Text  # a folder or preset name may look like rich markup

    return Text(str(value))


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _write(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that a reader never sees half a report."""
    replace_bytes(path, content)


class _Figures(dict):
    """Drawings by name; one that was not drawn is empty."""

    def __missing__(self, name: str) -> str:
        return ""


def _svgs(draws: dict[str, tuple[Draw, str]]) -> _Figures:
    from slca_fast.report.figures import svg

    return _Figures({name: Markup(svg(draw, name, description)) for name, (draw, description) in draws.items()})


def _run_page(run: RunRecord) -> dict[str, Any]:
    summary = run.summary
    num_tasks = len(run.task_sizes) or len(run.curve)
    what = [f"preset {run.preset}", f"seed {_shown(run.seed)}"]
    if num_tasks:
        what.append(f"{num_tasks} task{'s' if num_tasks > 1 else ''}")
    if run.class_names:
        what.append(f"{len(run.class_names)} classes")
    what += [_shown(summary[key]) for key in ("device", "precision") if summary.get(key)]
    notes = list(run.notes)
    if not run.complete:
        done = f"{_counted(len(run.curve), 'task')} evaluated so far" if run.curve else "no task is evaluated yet"
        notes.insert(0, f"This run is not finished: {done}.")
    recorded = sum(s for name, s in run.phases().items() if name != "other")
    total = run.metric("total_seconds")
    overlapping = total is not None and recorded > 1.01 * total
    return {
        "title": run.method if run.method != "run" else f"Run {run.folder.name}",
        "subtitle": " · ".join(what),
        "unfinished": not run.complete,
        "status": "complete" if run.complete else "in progress",
        "notes": notes,
        "numbers": _headline(run),
        "matrix": _padded([[_fixed(a, 1) for a in row] for row in run.matrix]),
        "mistakes": _mistakes(run),
        "phase_note": "Phases overlap, so they add up to more than the total." if overlapping else "",
        "backends": _backends(summary),
        "machine": _machine(summary),
        "problem_summary": _problem_summary(run),
        "problems": _problem_table(run),
        "config_text": run.config_text,
    }


def _headline(run: RunRecord) -> list[dict[str, Any]]:
    memory = run.metric("peak_memory_bytes")
    gigabytes = None if memory is None else memory / 2**30
    seconds = run.metric("total_seconds")
    numbers = [
        ("Last", run.metric("last_accuracy"), 2, " %", "top-1 over all classes after the last task"),
        (
            "Inc",
            run.metric("average_incremental_accuracy"),
            2,
            " %",
            "mean of the accuracies after each task",
        ),
        ("Forgetting", run.metric("forgetting"), 2, " pts", "mean loss on old tasks since their best"),
        (
            "Backward transfer",
            run.metric("backward_transfer"),
            2,
            " pts",
            "mean change on old tasks since learned",
        ),
        ("Training", run.metric("train_images_per_second"), 0, " img/s", "images per second of stage 1"),
        ("Peak memory", gigabytes, 2, " GiB", "largest memory in use"),
    ]
    shown = [
        {
            "name": n,
            "value": None if v is None else f"{v:,.{d}f}",
            "unit": u,
            "meaning": m,
            "main": n in ("Last", "Inc"),
        }
        for n, v, d, u, m in numbers
    ]
    shown.insert(
        5,
        {
            "name": "Total time",
            "value": None if seconds is None else _duration(seconds),
            "unit": "",
            "meaning": "wall time of the run",
            "main": False,
        },
    )
    return shown


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
    backends, reasons = summary.get("backends"), summary.get("backend_reasons")
    reasons = reasons if isinstance(reasons, dict) else {}
    if not isinstance(backends, dict):
        return []
    return [(part, _shown(name), _shown(reasons.get(part, ""))) for part, name in backends.items()]


def _machine(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name.replace("_", " "), _shown(summary.get(name))) for name in ("device", "cpu_threads", "precision")]
    versions = summary.get("versions")
    if isinstance(versions, dict):
        rows += [(name, _shown(version)) for name, version in versions.items()]
    return [*rows, ("weights SHA-256", _shown(summary.get("weights_sha256")))]


def _problem_summary(run: RunRecord) -> str:
    recorded = run.summary.get("data_problems")
    if not isinstance(recorded, dict):
        return "Not recorded." if not run.problems else f"{len(run.problems)} found."
    quarantined = recorded.get("quarantined")
    if not quarantined and not run.problems:
        return "None found."
    return f"{_counted(quarantined, 'file') if isinstance(quarantined, int) else 'Files'} left out of the run."


def _problem_table(run: RunRecord) -> dict[str, Any]:
    shown = run.problems[:_MAX_PROBLEMS_SHOWN]
    dicts = [p if isinstance(p, dict) else {"problem": p} for p in shown]
    columns = list(dict.fromkeys(key for p in dicts for key in p))
    rows = [[_shown(p.get(name, "")) for name in columns] for p in dicts]
    return {"columns": columns, "rows": rows, "num_more": len(run.problems) - len(shown)}


def _comparison_page(groups: list[RunGroup], notes: list[str]) -> dict[str, Any]:
    rows = rows_of(groups)
    best = {}
    for column in _COLUMNS:
        means = [m for row in rows if (m := row[f"{column.metric}_mean"]) is not None]
        if len(set(means)) > 1:
            best[column.metric] = max(means) if column.higher_is_better else min(means)
    num_runs = sum(len(group.runs) for group in groups)
    return {
        "title": "Comparison of " + (f"{len(groups)} methods" if len(groups) > 1 else groups[0].label),
        "subtitle": f"{_counted(num_runs, 'run')} in {_counted(len(groups), 'group')}",
        "unfinished": False,
        "notes": notes,
        "columns": [column.heading for column in _COLUMNS],
        "rows": [
            {
                "method": row["method"] if group.label == row["preset"] else group.label,
                "preset": row["preset"],
                "seeds": f"{row['num_runs']} ({', '.join(map(str, row['seeds']))})",
                "cells": [
                    {"text": _mean_std(row, c), "best": row[f"{c.metric}_mean"] == best.get(c.metric, np.nan)}
                    for c in _COLUMNS
                ],
            }
            for group, row in zip(groups, rows)
        ],
        "runs": [
            {
                "group": group.label,
                "seed": _shown(run.seed),
                "folder": str(run.folder),
                "last": _fixed(run.metric("last_accuracy"), 2) or _ABSENT,
                "inc": _fixed(run.metric("average_incremental_accuracy"), 2) or _ABSENT,
            }
            for group in groups
            for run in group.runs
        ],
    }


def _mean_std(row: dict[str, Any], column: _Column) -> str:
    mean, std = row[f"{column.metric}_mean"], row[f"{column.metric}_std"]
    if mean is None:
        return _ABSENT
    return f"{mean:,.{column.decimals}f}" + ("" if std is None else f" ± {std:,.{column.decimals}f}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


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


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_shown(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)
