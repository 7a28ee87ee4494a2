"""The comparison in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from slca_fast import metrics
from slca_fast.report.comparison import group_runs, rows_of


def comparison_table(run_dirs: list[Path]) -> Table:
    """The rows of ``comparison_rows`` for the terminal: mean ± sample standard deviation over seeds."""
    groups, notes = group_runs(run_dirs)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="\n".join(notes) or None, caption_justify="left")
    rows, columns = rows_of(groups), metrics.columns()
    # Presets are told only where two rows have the same method: eighty columns must do.
    told = len({row["method"] for row in rows}) < len(rows)
    table.add_column("preset" if told else "method", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in columns:
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = [
            metric.spread_text(row[f"{metric.name}_mean"], row[f"{metric.name}_std"], metric.terminal_decimals)
            for metric in columns
        ]
        # As plain text: a folder or preset name may look like rich markup.
        cells = (row["preset" if told else "method"], str(row["num_runs"]), *numbers)
        table.add_row(*(Text(cell) for cell in cells))
    return table
