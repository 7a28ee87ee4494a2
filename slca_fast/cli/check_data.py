"""``slca-fast check-data``: the preflight alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from slca_fast.cli.config_args import parse_overrides, split_names
from slca_fast.config import Config
from slca_fast.data.layout import describe_cells
from slca_fast.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Reads every image header below ``--data.root`` and prints what was found; DataError (exit 3) when it is bad."""
    if "--help" in argv or "-h" in argv:
        print(
            "usage: slca-fast check-data [DIR] [--data.policy fail|quarantine] [--data.KEY VALUE ...]\n\n"
            "Reads every image's header and lists all problems; exit code 3 when there are any (policy fail).\n"
            "DIR may also be given as --data.root DIR; without either the embedded digits are checked."
        )
        return 0
    from slca_fast.cli.console import observer_for
    from slca_fast.data.index import load_dataset

    names, args = split_names(argv, ())
    if len(names) > 1:
        raise UserError(f"check-data {' '.join(names)}: give one folder")
    config = parse_overrides(Config(), [*(["--data.root", *names] if names else []), *args])
    console = Console()
    where = config.data.root or "the embedded digits (give DIR to check your own images)"
    console.print(f"checking {where}", highlight=False, markup=False, soft_wrap=True)
    observer = observer_for(console)
    try:
        dataset = load_dataset(config.data, observer.indexing)
    finally:
        observer.closed()
    for problem in dataset.problems:
        console.print(f"quarantined: {problem}", highlight=False, markup=False, soft_wrap=True)
    for name, index in (("train", dataset.train), ("test", dataset.test)):
        counts = np.bincount(index.label_N, minlength=len(dataset.class_names))
        sizes = f"{index.width_N.min()}x{index.height_N.min()} to {index.width_N.max()}x{index.height_N.max()} px"
        console.print(
            f"{name}: {index.num_images} images of {len(dataset.class_names)} classes "
            f"({counts.min()} to {counts.max()} per class), {sizes}",
            highlight=False,
            soft_wrap=True,
        )
        if index.domain_names:
            console.print(f"{name}: domains {', '.join(index.domain_names)}", highlight=False, soft_wrap=True)
    for note, count in sorted(dataset.notes.items()):
        console.print(f"{count} files: {note}", highlight=False, markup=False, soft_wrap=True)
    for line in describe_cells(dataset.empty_cells):
        console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)
    return 0
