"""Cutting one folder of classes into train and test, by list files or by a seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slca_fast.data.folder import EXTENSIONS
from slca_fast.data.prepare.place import safe_relative
from slca_fast.errors import DataError


def images_by_class(folder: Path) -> dict[str, list[str]]:
    """{class: sorted image paths relative to folder} of ``<folder>/<class>/**/<image>``."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    images = {name: sorted(_images_below(folder, name)) for name in classes}
    empty = [name for name, paths in images.items() if not paths]
    if not classes or empty:
        raise DataError(f"{folder}: " + (f"no images of class {empty[0]}" if empty else "no class folders"))
    return images


def _images_below(folder: Path, name: str) -> list[str]:
    return [
        os.path.relpath(os.path.join(parent, file), folder)
        for parent, _, files in os.walk(folder / name)
        for file in files
        if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    ]


def seeded_split(images: dict[str, list[str]], test_fraction: float, seed: int) -> dict[str, set[str]]:
    """{"train": paths, "test": paths}; of every class its share, so that the totals are exact too.

    Largest remainders: classes are given floor(n f) test images, then one more where the fraction is largest.
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"test_fraction is {test_fraction}: give a number between 0 and 1")
    names = sorted(images)
    wanted = np.array([len(images[name]) * test_fraction for name in names])
    num_test = np.floor(wanted + 1e-9).astype(int)
    short = round(float(wanted.sum())) - num_test.sum()
    num_test[np.argsort(num_test - wanted, kind="stable")[:short]] += 1
    single = [name for name in names if len(images[name]) == 1]
    if single:
        raise DataError(f"class {single[0]} has one image only: it cannot be in train and in test")
    num_test = np.clip(num_test, 1, [len(images[name]) - 1 for name in names])
    rng = np.random.RandomState(seed)
    split: dict[str, set[str]] = {"train": set(), "test": set()}
    for name, count in zip(names, num_test):
        order = rng.permutation(len(images[name]))
        split["test"] |= {images[name][i] for i in order[:count]}
        split["train"] |= {images[name][i] for i in order[count:]}
    return split


def listed_split(images: dict[str, list[str]], lists: dict[str, Path]) -> dict[str, set[str]]:
    """Split by list files: a path per line, anything after white space ignored; its end ``class/file`` decides."""
    by_end = {"/".join(path.split(os.sep)[-2:]): path for paths in images.values() for path in paths}
    split = {}
    for name, file in lists.items():
        ends = ["/".join(safe_relative(line).split("/")[-2:]) for line in read_list(file)]
        unknown = [end for end in ends if end not in by_end]
        if unknown:
            raise DataError(f"{file} lists {unknown[0]} (and {len(unknown) - 1} more), which is not in the source")
        split[name] = {by_end[end] for end in ends}
    both = split["train"] & split["test"]
    if both:
        raise DataError(f"{sorted(both)[0]} is listed for train and for test ({len(both)} such files)")
    return split


def read_list(file: Path) -> Sequence[str]:
    """First word of each line that is not empty."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error})") from None
    return [line.split()[0] for line in lines if line.strip()]
