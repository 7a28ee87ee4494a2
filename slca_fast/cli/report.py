"""``slca-fast report``: one run's report, or several runs compared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from slca_fast.cli.paths import user_path


def main(argv: Sequence[str]) -> int:
    """Writes ``report.html`` of one run, or a comparison of several."""
    parser = argparse.ArgumentParser(prog="slca-fast report", description="Write a run's report, or compare several.")
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("--output", type=user_path, help="file of the comparison (default: comparison.html)")
    options = parser.parse_args(argv)
    from slca_fast.report.comparison_page import compare_runs
    from slca_fast.report.comparison_table import comparison_table
    from slca_fast.report.run_page import write_report

    console = Console()
    if len(options.runs) == 1 and options.output is None:
        written = write_report(options.runs[0])
    else:
        console.print(comparison_table(options.runs))
        written = compare_runs(options.runs, options.output or Path("comparison.html"))
    console.print(f"report: {written}", highlight=False, markup=False, soft_wrap=True)
    return 0
