"""Reads a run's folder: tolerant of a run that is still going on, and of files that are missing or broken."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from slca_fast.errors import UserError
from slca_fast.metrics import Curve, Matrix
from slca_fast.runs.record import RunRecord, number


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
        curve=_longer(_numbers(summary.get("accuracy_curve")), tuple(number(t.get("accuracy")) for t in tasks)),
        top5_curve=_longer(_numbers(summary.get("top5_curve")), tuple(number(t.get("top5")) for t in tasks)),
        matrix=_longer(
            _rows(summary.get("accuracy_matrix")) or _read_matrix(folder / "accuracy_matrix.csv"),
            _rows([t.get("per_task") for t in tasks]),
        ),
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
    found: dict[tuple[float | None, ...], dict[str, Any]] = {}
    for event in events:
        key = tuple(number(event.get(k)) for k in keys)
        if event.get("event") == kind and None not in key:
            found[key] = event
    return tuple(found[key] for key in sorted(found))


def _longer(recorded: tuple, logged: tuple) -> tuple:
    """What the summary has, or the log where it is ahead, as within a run of many tasks."""
    return recorded if len(recorded) >= len(logged) else logged


def _numbers(values: Any) -> Curve:
    return tuple(number(v) for v in values) if isinstance(values, list) else ()


def _rows(values: Any) -> Matrix:
    rows = [_numbers(row) for row in values] if isinstance(values, list) else []
    return tuple(rows) if any(rows) else ()


def _read_matrix(path: Path) -> Matrix:
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
