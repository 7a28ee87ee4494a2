"""A metric is one row of the table: everything that lists metrics follows."""

from __future__ import annotations

from run_folders import assert_sound, make_run, printed

from slca_fast import metrics
from slca_fast.cli.console import outcome_text
from slca_fast.metrics import Bars, Metric, TaskResult
from slca_fast.report.comparison import comparison_rows
from slca_fast.report.comparison_page import compare_runs
from slca_fast.report.comparison_table import comparison_table
from slca_fast.report.run_page import write_report
from slca_fast.runs.reading import read_run
from slca_fast.runs.summary import write_results

LOWEST = Metric(
    "lowest_accuracy",
    heading="lowest",
    title="Lowest accuracy",
    meaning="the smallest of the accuracies after each task",
    unit="permille",
    higher_is_better=True,
    function=lambda curve, matrix: min(curve),
    decimals=3,
    terminal_decimals=1,
    card_decimals=0,
    scale=0.1,
    main=True,
    bars=Bars("Lowest", "lowest accuracy (permille)", "How low it went."),
)


def test_one_row_adds_a_metric_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS[:1], LOWEST, *metrics.METRICS[1:]))
    results = [TaskResult(a, 100.0, (a,) * (t + 1)) for t, a in enumerate((90.0, 70.5, 80.0))]
    summary = write_results(tmp_path, results, {"total_seconds": 12.34})
    assert summary["lowest_accuracy"] == 70.5 and list(summary)[:2] == ["last_accuracy", "lowest_accuracy"]

    runs = [
        make_run(tmp_path / "low", method="slca", accuracy=[90.0, 70.5, 80.0]),
        make_run(tmp_path / "high", method="slcapp", accuracy=[90.0, 85.0, 84.0]),
    ]
    assert outcome_text(read_run(runs[0])).startswith("Last 80.00, lowest 705.000, Inc 80.17, forgetting ")
    page = assert_sound(write_report(runs[0]))
    assert "Last 80.00 % Lowest accuracy 705 permille Inc" in " ".join(page.text.split())
    assert [row["lowest_accuracy_mean"] for row in comparison_rows(runs)] == [70.5, 84.0]
    page = assert_sound(compare_runs(runs, tmp_path / "comparison.html"))
    text = " ".join(page.text.split())
    assert "Last lowest Inc forgetting" in text and "lowest accuracy (permille)" in text and "How low it went." in text
    assert '<td class="num">705.000</td>' in page.source and '<td class="num best">840.000</td>' in page.source
    assert "group seed Last Lowest accuracy Inc folder" in text
    header, _, low, high = printed(comparison_table(runs)).split("\n")[1:5]
    assert header.split()[:5] == ["method", "n", "Last", "lowest", "Inc"]
    assert low.split()[:4] == ["SLCA", "1", "80.00", "705.0"] and high.split()[3] == "840.0"


def test_names_and_headings_tell_the_metrics_apart():
    assert len({metric.name for metric in metrics.METRICS}) == len(metrics.METRICS)
    assert len({metric.title for metric in metrics.METRICS}) == len(metrics.METRICS)
    assert len({metric.heading for metric in metrics.columns()}) == len(metrics.columns())
