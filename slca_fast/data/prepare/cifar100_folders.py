"""CIFAR-100 as a folder of class folders, as github.com/cyizhuo/CIFAR-100-dataset has it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slca_fast.data.images import BadImage, decode_rgb, read_header
from slca_fast.data.prepare.sound import Job, class_folders
from slca_fast.data.prepare.split import images_of_splits
from slca_fast.data.prepare.split_names import layout_of
from slca_fast.errors import DataError

_SIDE = 32


def jobs_of_class_folders(folder: Path) -> tuple[list[Job], tuple[str, ...]]:
    """Jobs for ``folder``'s train/<class>/<image> and test/<class>/<image>, and what beside them is left out.

    Raises DataError for a layout, a class name or an image that is not CIFAR-100's: RGB PNGs of 32 x 32 that decode.
    """
    layout = layout_of(folder)
    if layout.train is None or layout.test is None:
        raise DataError(f"{folder} holds test/, but no train/ of class folders beside it")
    places = {"train": folder / layout.train, "test": folder / layout.test}
    found = images_of_splits(places)
    folder_of = dict(zip(found["train"], class_folders(found["train"], places["train"])))
    jobs = [
        Job(f"{split}/{folder_of[name]}{path[len(name) :]}", places[split] / path)
        for split, images in found.items()
        for name, paths in images.items()
        for path in paths
    ]
    _require_cifar_images([job.source for job in jobs if job.source is not None])
    return jobs, layout.left_out


def _require_cifar_images(paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        odd = [(path, why) for path, why in zip(paths, pool.map(_why_odd, paths)) if why is not None]
    if odd:
        path, why = odd[0]
        raise DataError(f"{path}: {why}" + (f" (and {len(odd) - 1} more)" if odd[1:] else ""))


def _why_odd(path: Path) -> str | None:
    try:
        header = read_header(path, math.inf)
        found = (f"{header.format} of {header.width} x {header.height} pixels", *header.notes)
        if found != (f"PNG of {_SIDE} x {_SIDE} pixels",):
            return f"{', '.join(found)}, where CIFAR-100 has RGB PNGs of {_SIDE} x {_SIDE}"
        decode_rgb(path)
    except BadImage as error:
        return str(error)
    return None
