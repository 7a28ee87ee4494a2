"""Lines of the terminal."""

from __future__ import annotations

from run_folders import make_run

from slca_fast import metrics
from slca_fast.cli.console import outcome_text
from slca_fast.runs.reading import read_run


def test_a_finished_run_in_one_line(tmp_path) -> None:
    run = read_run(make_run(tmp_path / "run", total_seconds=1234.56))
    # Rows [96.5], [87.38, 88.88], [78.25, 79.75, ..]: drops 18.25 and 9.13.
    assert outcome_text(run) == "Last 80.25, Inc 88.38, forgetting 13.69, 1,234.6 s"


def test_forgetting_of_one_task_is_a_dash_also_where_an_older_summary_has_zero(tmp_path) -> None:
    for name, older in (("run", {}), ("older", {"forgetting": 0.0})):
        run = read_run(make_run(tmp_path / name, sizes=(4,), accuracy=[97.5], **older))
        assert outcome_text(run) == "Last 97.50, Inc 97.50, forgetting –, 90.0 s"


def test_a_finished_run_is_told_in_metrics_that_came_later(tmp_path, monkeypatch) -> None:
    run = read_run(make_run(tmp_path / "run"))
    first = metrics.Metric("first", "first", "First", "accuracy after the first task", "%", True, lambda a, r: a[0])
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, first))
    assert outcome_text(run).endswith("forgetting 13.69, first 96.50, 90.0 s")
