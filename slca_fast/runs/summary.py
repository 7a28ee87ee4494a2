"""The files a run leaves behind besides its checkpoints: summary.json, accuracy matrix, confusion, data problems."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slca_fast.files import replace_json, replace_text
from slca_fast.metrics import TaskResult, accuracy_matrix, summary_metrics


def write_results(folder: Path, results: Sequence[TaskResult], facts: dict[str, Any]) -> dict[str, Any]:
    """Writes ``summary.json`` (the metrics plus ``facts``), ``accuracy_matrix.csv`` and ``confusion.csv``.

    Returns the summary.
    """
    summary = {**summary_metrics(results), **facts}
    header = ["after task", *(f"task {k + 1}" for k in range(len(results)))]
    matrix = accuracy_matrix(results)
    rows = [[t, *("" if a is None else f"{a:.4f}" for a in row)] for t, row in enumerate(matrix, start=1)]
    replace_text(folder / "accuracy_matrix.csv", _csv([header, *rows]))
    replace_text(folder / "confusion.csv", _csv(results[-1].confusion.tolist()))
    replace_json(folder / "summary.json", summary)
    return summary


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
