"""One run as its folder records it: read only, and tolerant of a run that is still going on."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from slca_fast.errors import UserError

METHOD_NAMES = {
    "seqft": "Seq FT",
    "slowft": "Slow FT",
    "probe": "Probe",
    "joint": "Joint",
    "slca": "SLCA",
    "slcapp": "SLCA++",
}


@dataclass(frozen=True)
class RunRecord:
    """Everything a report shows about one run; what is missing on disk is empty or None here.

    Accuracies are percent, times seconds, tasks count from 0. ``matrix[t][k]`` is the accuracy on task k's
    test images after task t; None where it was not measured.
    """

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    epochs: tuple[dict[str, Any], ...]
    alignments: tuple[dict[str, Any], ...]
    curve: tuple[float | None, ...]
    top5_curve: tuple[float | None, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    confusion_CC: np.ndarray | None
    problems: tuple[Any, ...]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """The method's written name, e.g. ``SLCA++``."""
        return METHOD_NAMES.get(str(self.summary.get("method", "")), str(self.summary.get("method") or "run"))

    @property
    def preset(self) -> str:
        return str(self.summary.get("preset") or self.folder.name)

    @property
    def seed(self) -> Any:
        return self.summary.get("seed", self.config.get("seed"))

    @property
    def task_sizes(self) -> tuple[int, ...]:
        sizes = self.summary.get("task_sizes") or ()
        return tuple(int(s) for s in sizes) if all(number(s) is not None for s in sizes) else ()

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
        if len(names) != len(order) or sorted(order) != list(range(len(names))):
            return [str(name) for name in names]
        return [str(names[c]) for c in order]

    def metric(self, name: str) -> float | None:
        """A number of summary.json, or for the accuracies of a run in progress the same number so far."""
        value = number(self.summary.get(name))
        known = [a for a in self.curve if a is not None]
        if value is not None or not known:
            return value
        if name == "last_accuracy":
            return known[-1]
        if name == "average_incremental_accuracy":
            return sum(known) / len(known)
        if name == "forgetting":
            return forgetting(self.matrix)
        return backward_transfer(self.matrix) if name == "backward_transfer" else None

    def phases(self) -> dict[str, float]:
        """Seconds per phase in a fixed order; ``other`` is what the total has beyond them."""
        recorded = self.summary.get("phase_seconds")
        recorded = recorded if isinstance(recorded, dict) else {}
        order = ["stage1", "statistics", "alignment", "evaluation", "data", "compile"]
        names = [n for n in order if n in recorded] + [n for n in recorded if n not in order]
        seconds = {n: number(recorded[n]) for n in names}
        phases = {n: s for n, s in seconds.items() if s is not None}
        total = self.metric("total_seconds")
        if phases and total is not None and total - sum(phases.values()) > 0.005 * total:
            phases["other"] = total - sum(phases.values())
        return phases


def number(value: Any) -> float | None:
    """A finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def forgetting(matrix: tuple[tuple[float | None, ...], ...]) -> float | None:
    """Mean over old tasks of the best earlier accuracy minus the final one, in points; None for one task."""
    last = len(matrix) - 1
    drops = []
    for task in range(last):
        earlier = [row[task] for row in matrix[:last] if task < len(row) and row[task] is not None]
        final = matrix[last][task] if task < len(matrix[last]) else None
        if not earlier or final is None:
            return None
        drops.append(max(earlier) - final)
    return sum(drops) / len(drops) if drops else None


def backward_transfer(matrix: tuple[tuple[float | None, ...], ...]) -> float | None:
    """Mean over old tasks of final accuracy minus that when just learned, in points; None for one task."""
    last = len(matrix) - 1
    gains = []
    for task in range(last):
        first = matrix[task][task] if task < len(matrix[task]) else None
        final = matrix[last][task] if task < len(matrix[last]) else None
        if first is None or final is None:
            return None
        gains.append(final - first)
    return sum(gains) / len(gains) if gains else None


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; raises UserError when it holds no run at all."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file() and not (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"{folder}: no run here (neither summary.json nor metrics.jsonl); "
            "give a folder that `slca-fast train` wrote"
        )
    notes: list[str] = []
    summary = _read_json(folder / "summary.json", dict, notes) or {}
    problems = _read_json(folder / "problems.json", list, notes) or []
    events = _read_events(folder / "metrics.jsonl", notes)
    config_text = _read_text(folder / "config.yaml")
    tasks = _latest(events, "task", ("task",))
    return RunRecord(
        folder=folder,
        summary=summary,
        config=_parse_config(config_text, notes),
        config_text=config_text,
        epochs=_latest(events, "epoch", ("task", "epoch")),
        alignments=_latest(events, "align", ("task", "epoch")),
        curve=_numbers(summary.get("accuracy_curve")) or tuple(number(t.get("accuracy")) for t in tasks),
        top5_curve=_numbers(summary.get("top5_curve")) or tuple(number(t.get("top5")) for t in tasks),
        matrix=_rows(summary.get("accuracy_matrix"))
        or _read_matrix(folder / "accuracy_matrix.csv")
        or _rows([t.get("per_task") for t in tasks]),
        confusion_CC=_read_confusion(folder / "confusion.csv", notes),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path, kind: type, notes: list[str]) -> Any:
    text = _read_text(path)
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        notes.append(f"{path.name} is not valid JSON ({error}); it was left out.")
        return None
    if not isinstance(value, kind):
        notes.append(f"{path.name} does not hold a {kind.__name__}; it was left out.")
        return None
    return value


def _parse_config(text: str, notes: list[str]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        notes.append(f"config.yaml is not valid YAML ({str(error).splitlines()[0]}).")
        return {}
    return value if isinstance(value, dict) else {}


def _read_events(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    events, num_bad = [], 0
    for line in _read_text(path).splitlines():
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            num_bad += 1  # a killed run may leave its last line half written
            continue
        if isinstance(event, dict):
            events.append(event)
    if num_bad:
        notes.append(f"{num_bad} unreadable line{'s' if num_bad > 1 else ''} of metrics.jsonl skipped.")
    return events


def _latest(events: list[dict[str, Any]], kind: str, keys: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """Events of one kind in order of their keys; a resumed run repeats some, and the last one counts."""
    found: dict[tuple[float, ...], dict[str, Any]] = {}
    for event in events:
        key = tuple(number(event.get(k)) for k in keys)
        if event.get("event") == kind and None not in key:
            found[key] = event
    return tuple(found[key] for key in sorted(found))


def _numbers(values: Any) -> tuple[float | None, ...]:
    return tuple(number(v) for v in values) if isinstance(values, list) else ()


def _rows(values: Any) -> tuple[tuple[float | None, ...], ...]:
    rows = [_numbers(row) for row in values] if isinstance(values, list) else []
    return tuple(rows) if any(rows) else ()


def _read_matrix(path: Path) -> tuple[tuple[float | None, ...], ...]:
    """A square table of numbers with empty cells; a header row and a column of task names are dropped."""
    rows = [row for row in csv.reader(_read_text(path).splitlines()) if row]
    cells = [[_cell(text) for text in row] for row in rows]
    if rows and any(cell is None and text.strip().lower() not in ("", "nan") for cell, text in zip(cells[0], rows[0])):
        cells = [row[1:] if cells[0][0] is None else row for row in cells[1:]]
    return _rows(cells)


def _cell(text: str) -> float | None:
    try:
        return number(float(text))
    except ValueError:
        return None


def _read_confusion(path: Path, notes: list[str]) -> np.ndarray | None:
    text = _read_text(path)
    if not text.strip():
        return None
    try:
        counts_CC = np.loadtxt(text.splitlines(), delimiter=",", ndmin=2)
    except ValueError as error:
        notes.append(f"confusion.csv could not be read ({error}); it was left out.")
        return None
    if counts_CC.shape[0] != counts_CC.shape[1] or not np.isfinite(counts_CC).all() or counts_CC.min() < 0:
        notes.append(f"confusion.csv is not a square table of counts (shape {counts_CC.shape}); it was left out.")
        return None
    return counts_CC
