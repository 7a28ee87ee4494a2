"""``slca-fast prepare``: brings a data set, as downloaded, into the image-folder layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from slca_fast.datasets import DATASETS, preparers
from slca_fast.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Prepares one data set; an interrupted call is finished by the same call."""
    from slca_fast.cli.console import observer_for
    from slca_fast.data.prepare import prepare, preparer, takes_source

    if not argv or argv[0] in ("--help", "-h"):
        print(_usage())
        return 0
    name = argv[0]
    function = preparer(name)
    parser = ArgumentParser(prog=f"slca-fast prepare {name}", exit_on_error=False)
    if takes_source(function):
        parser.add_argument("--source", type=str, help="folder or archive as downloaded")
    parser.add_argument("--root", type=str, required=True, help="folder to be made")
    parser.add_function_arguments(function, skip={"source", "root", "progress"})
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


def _usage() -> str:
    rows = "\n".join(
        f"  {name:12s} {row.title}: {row.num_train:,} train, {row.num_test:,} test images of {row.num_classes} classes"
        for name, row in DATASETS.items()
    )
    return f"""\
usage: slca-fast prepare {{{",".join(preparers())}}} --source PATH --root DIR [options]

PATH is the folder or archive as downloaded; DIR becomes train/ and test/.
{rows}
  {"folder":12s} any image folder, split already or one folder of classes
  {"synthetic":12s} made-up images shaped like one of the data sets above; needs no PATH
slca-fast prepare DATASET --help lists the options of one data set."""
