"""What a run writes at its end."""

from __future__ import annotations

import json

import numpy as np

from slca_fast.metrics import METRICS, Confusion, TaskResult
from slca_fast.runs.summary import write_results

CONFUSION = Confusion(2, np.array([[0, 0, 3], [0, 1, 1], [1, 1, 2]]))


def test_what_one_task_leaves_undefined_is_null(tmp_path) -> None:
    summary = write_results(tmp_path, [TaskResult(97.5, 100.0, (97.5,), CONFUSION)], {"status": "complete"})
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == summary
    assert '"forgetting": null' in text and '"backward_transfer": null' in text
    assert summary["last_accuracy"] == summary["average_incremental_accuracy"] == 97.5


def test_summary_matrix_and_confusion(tmp_path) -> None:
    results = [TaskResult(90.0, 95.0, (90.0,), CONFUSION), TaskResult(75.0, 85.0, (70.0, 80.0), CONFUSION)]
    summary = write_results(tmp_path, results, {"seed": 3})
    assert list(summary)[:4] == [metric.name for metric in METRICS if metric.function is not None]
    assert summary["accuracy_matrix"] == [[90.0, None], [70.0, 80.0]] and summary["seed"] == 3
    assert summary["accuracy_curve"] == [90.0, 75.0] and summary["top5_curve"] == [95.0, 85.0]
    rows = (tmp_path / "accuracy_matrix.csv").read_text().splitlines()
    assert rows == ["after task,task 1,task 2", "1,90.0000,", "2,70.0000,80.0000"]
    assert (tmp_path / "confusion.csv").read_text() == "3,1\n0,2\n"
