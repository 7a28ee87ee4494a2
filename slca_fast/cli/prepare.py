"""``slca-fast prepare``: brings a data set, as downloaded, into the image-folder layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from slca_fast.cli.config_args import did_you_mean
from slca_fast.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Prepares one data set; an interrupted call is finished by the same call."""
    from slca_fast.cli.console import observer_for
    from slca_fast.data.prepare import DATASETS, prepare

    if not argv or argv[0] in ("--help", "-h"):
        print(
            f"usage: slca-fast prepare {{{','.join(DATASETS)}}} --source PATH --root DIR [options]\n\n"
            "PATH is the folder or archive as downloaded (synthetic needs none); DIR becomes train/ and test/.\n"
            "slca-fast prepare DATASET --help lists the options of one data set."
        )
        return 0
    name = argv[0]
    if name not in DATASETS:
        raise UserError(
            f"prepare knows no data set {name!r}{did_you_mean(name, list(DATASETS))}; it knows {', '.join(DATASETS)}"
        )
    parser = ArgumentParser(prog=f"slca-fast prepare {name}", exit_on_error=False)
    if name != "synthetic":
        parser.add_argument("--source", type=str, help="folder or archive as downloaded")
    parser.add_argument("--root", type=str, required=True, help="folder to be made")
    parser.add_function_arguments(DATASETS[name], skip={"source", "root", "progress"})
    try:
        values = parser.parse_args(list(argv[1:])).as_dict()
    except argparse.ArgumentError as error:
        raise UserError(f"prepare {name}: {' '.join(str(error).split())}") from error
    console = Console()
    observer = observer_for(console)
    try:
        report = prepare(name, values.pop("source", None), values.pop("root"), progress=observer.indexing, **values)
    finally:
        observer.closed()
    console.print(str(report), highlight=False, markup=False, soft_wrap=True)
    return 0
