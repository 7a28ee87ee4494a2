"""Reads a run's folder for a report: what is missing, broken or unfit is left out, and a note says so."""

from __future__ import annotations

import csv
import typing
from pathlib import Path
from typing import Any

import numpy as np

from slca_fast.bounded import Unreadable, parse_json, read_bounded
from slca_fast.config_file import parse_yaml
from slca_fast.errors import UserError
from slca_fast.metrics import METRICS, Matrix
from slca_fast.runs.record import RunRecord
from slca_fast.runs.schema import (
    EVENTS,
    MOST_BYTES,
    MOST_CONFIG_BYTES,
    MOST_COUNT,
    MOST_TASKS,
    MOST_TASKS_DRAWN,
    Measured,
    Problems,
    Summary,
    Unfit,
    fitting,
)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; raises UserError when it holds no run at all."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file() and not (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"{folder}: no run here (neither summary.json nor metrics.jsonl); "
            "give a folder that `slca-fast train` wrote"
        )
    notes: list[str] = []
    summary = _read_summary(folder / "summary.json", notes)
    config_text = _read_text(folder / "config.yaml", notes, MOST_CONFIG_BYTES)
    events = _read_events(folder / "metrics.jsonl", notes)
    tasks = events["task"]
    return RunRecord(
        folder=folder,
        summary=summary,
        config=_parse_config(config_text, notes),
        config_text=config_text,
        epochs=events["epoch"],
        alignments=events["align"],
        curve=_longer(tuple(summary.get("accuracy_curve") or ()), tuple(task.get("accuracy") for task in tasks)),
        top5_curve=_longer(tuple(summary.get("top5_curve") or ()), tuple(task.get("top5") for task in tasks)),
        matrix=_drawable(
            _longer(
                _rows(summary.get("accuracy_matrix")) or _read_matrix(folder / "accuracy_matrix.csv", notes),
                _rows([task.get("per_task") for task in tasks]),
            ),
            notes,
        ),
        confusion_CC=_read_confusion(folder / "confusion.csv", notes),
        problems=_read_problems(folder / "problems.json", notes),
        notes=tuple(notes),
    )


def _read_text(path: Path, notes: list[str], most_bytes: int = MOST_BYTES) -> str:
    if not path.exists() and not path.is_symlink():
        return ""
    try:
        return read_bounded(path, most_bytes).decode(errors="replace")
    except Unreadable as error:
        notes.append(f"{path.name} was left out ({str(error).removeprefix(f'{path}: ')}).")
        return ""


def _read_json(path: Path, notes: list[str]) -> Any:
    text = _read_text(path, notes)
    if not text.strip():
        return None
    try:
        return parse_json(text, path.name)
    except Unreadable as error:
        notes.append(f"{error}; it was left out.")
        return None


def _read_summary(path: Path, notes: list[str]) -> dict[str, Any]:
    values = _read_json(path, notes)
    if not isinstance(values, dict):
        if values is not None:
            notes.append(f"{path.name} does not hold a table; it was left out.")
        return {}
    fields = {metric.name: Measured for metric in METRICS} | typing.get_type_hints(Summary, include_extras=True)
    kept = {}
    for name in (name for name in fields if name in values):
        try:
            kept[name] = fitting(values[name], fields[name])
        except Unfit as error:
            notes.append(f"{path.name}: {name} was left out ({error}).")
    return kept


def _read_problems(path: Path, notes: list[str]) -> tuple[Any, ...]:
    values = _read_json(path, notes)
    try:
        return () if values is None else tuple(fitting(values, Problems))
    except Unfit as error:
        notes.append(f"{path.name} was left out ({error}).")
        return ()


def _parse_config(text: str, notes: list[str]) -> dict[str, Any]:
    try:
        value = parse_yaml(text, "config.yaml")
    except UserError as error:
        notes.append(f"{str(error).splitlines()[0]}.")
        return {}
    return value if isinstance(value, dict) else {}


def _read_events(path: Path, notes: list[str]) -> dict[str, tuple[dict[str, Any], ...]]:
    """Events by kind, in order of task and epoch; a resumed run repeats some, and the last one counts."""
    found: dict[str, dict[tuple[int, int], dict[str, Any]]] = {kind: {} for kind in EVENTS}
    num_bad, first = 0, ""
    for number, line in enumerate(_read_text(path, notes).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            event = parse_json(line, "it")
            kind = event.get("event") if isinstance(event, dict) else event
            if not isinstance(kind, str):
                raise Unfit("no event")
            if kind in EVENTS:
                event = fitting(event, EVENTS[kind])
                found[kind][event["task"], event.get("epoch", 0)] = event
        except (Unreadable, Unfit) as error:
            num_bad += 1  # a killed run may leave its last line half written
            first = first or f"line {number}: {error}"
    if num_bad:
        notes.append(f"{num_bad} unreadable line{'s' if num_bad > 1 else ''} of metrics.jsonl skipped ({first}).")
    return {kind: tuple(by_place[place] for place in sorted(by_place)) for kind, by_place in found.items()}


def _longer(recorded: tuple, logged: tuple) -> tuple:
    """What the summary has, or the log where it is ahead, as within a run of many tasks."""
    return recorded if len(recorded) >= len(logged) else logged


def _rows(values: Any) -> Matrix:
    rows = [tuple(row or ()) for row in values or ()]
    return tuple(rows) if any(rows) else ()


def _drawable(matrix: Matrix, notes: list[str]) -> Matrix:
    if max((len(matrix), *map(len, matrix))) <= MOST_TASKS_DRAWN:
        return matrix
    notes.append(f"The accuracy matrix is left out: it has more than {MOST_TASKS_DRAWN:,} tasks.")
    return ()


def _read_matrix(path: Path, notes: list[str]) -> Matrix:
    """A square table of numbers with empty cells; a header row and a column of task names are dropped."""
    try:
        rows = [row for row in csv.reader(_read_text(path, notes).splitlines()) if row]
    except csv.Error as error:
        notes.append(f"{path.name} was left out ({error}).")
        return ()
    if len(rows) > MOST_TASKS + 1:
        notes.append(f"{path.name} was left out (more than {MOST_TASKS:,} tasks).")
        return ()
    cells = [[_cell(text) for text in row] for row in rows]
    if rows and any(cell is None and text.strip().lower() not in ("", "nan") for cell, text in zip(cells[0], rows[0])):
        cells = [row[1:] if cells[0][0] is None else row for row in cells[1:]]
    return _rows(cells)


def _cell(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None


def _read_confusion(path: Path, notes: list[str]) -> np.ndarray | None:
    text = _read_text(path, notes)
    if not text.strip():
        return None
    try:
        counts_CC = np.loadtxt(text.splitlines(), delimiter=",", ndmin=2, comments=None)
    except ValueError as error:
        notes.append(f"confusion.csv could not be read ({str(error)[:200]}); it was left out.")
        return None
    # Not a NaN either.
    fit = counts_CC.size > 0 and counts_CC.shape[0] == counts_CC.shape[1] and counts_CC.min() >= 0
    if not fit or not counts_CC.max() <= MOST_COUNT:
        notes.append(f"confusion.csv is not a square table of counts (shape {counts_CC.shape}); it was left out.")
        return None
    return counts_CC
