"""``slca-fast export``: a run's backbone for plain timm or PEFT."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from slca_fast.cli.paths import user_path
from slca_fast.cli.warning import warn


def main(argv: Sequence[str]) -> int:
    """Writes the exported files and prints their names."""
    parser = argparse.ArgumentParser(prog="slca-fast export", description="Write a run's backbone for timm or PEFT.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("--format", choices=("timm", "peft"), required=True)
    parser.add_argument("--to", type=user_path, required=True, metavar="DIR", help="new folder")
    options = parser.parse_args(argv)
    from slca_fast.export import export_peft, export_timm
    from slca_fast.runs.trained import load_run

    write = export_timm if options.format == "timm" else export_peft
    for path in write(load_run(options.run, "cpu", warn), options.to):
        print(path)
    return 0
