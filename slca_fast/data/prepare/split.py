"""Cutting one folder of classes into train and test, by list files or by a seed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from slca_fast.data.prepare.sound import Job, safe_relative
from slca_fast.data.prepare.tables import read_bytes, read_list
from slca_fast.data.walk import find_images, subfolders
from slca_fast.errors import DataError, UserError

_TEST_FRACTION = 0.2


def split_class_folders(
    folder: Path, seed: int, train_list: str | Path | None, test_list: str | Path | None
) -> tuple[list[Job], dict[str, Any]]:
    """Jobs that split ``folder`` by both list files, else 80/20 by ``seed`` within each class; and what to record."""
    if (train_list is None) != (test_list is None):
        raise UserError("give both --train_list and --test_list, or neither for a seeded split")
    images = images_by_class(folder)
    if train_list is None or test_list is None:
        split, options = seeded_split(images, _TEST_FRACTION, seed), {"split": f"seed {seed}"}
    else:
        lists = {"train": Path(train_list), "test": Path(test_list)}
        split = listed_split(images, lists)
        options = {"split": {name: hashlib.sha256(read_bytes(file)).hexdigest() for name, file in lists.items()}}
    return [Job(f"{name}/{path}", folder / path) for name, paths in split.items() for path in sorted(paths)], options


def images_by_class(folder: Path) -> dict[str, list[str]]:
    """{class: sorted image paths relative to folder} of ``<folder>/<class>/**/<image>``; DataError for bad files."""
    classes = {name: find_images(folder, name) for name in subfolders(folder)}
    problems = [problem for found in classes.values() for problem in found.problems]
    if problems:
        path, reason = problems[0]
        raise DataError(f"{folder / path}: {reason}" + (f" (and {len(problems) - 1} more)" if problems[1:] else ""))
    images = {name: sorted(os.path.join(*where) for where in found.images) for name, found in classes.items()}
    empty = [name for name, paths in images.items() if not paths]
    if not classes or empty:
        raise DataError(f"{folder}: " + (f"no images of class {empty[0]}" if empty else "no class folders"))
    return images


def images_of_splits(places: dict[str, Path]) -> dict[str, dict[str, list[str]]]:
    """{split: ``images_by_class`` of its folder}; DataError where the splits do not have the same classes."""
    found = {split: images_by_class(place) for split, place in places.items()}
    odd = sorted(set(found["train"]) ^ set(found["test"]))
    if odd:
        folder = places["train"].parent
        raise DataError(f"{folder}: class {odd[0]} (and {len(odd) - 1} more) is in one split only")
    return found


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
    """Split by list files: a path per line, anything after white space ignored; its end ``class/file`` decides.

    A file's name that only one class has may stand alone.
    """
    by_end = {"/".join(path.split(os.sep)[-2:]): path for paths in images.values() for path in paths}
    names = Counter(end.rpartition("/")[2] for end in by_end)
    by_end |= {name: path for end, path in by_end.items() if names[name := end.rpartition("/")[2]] == 1}
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
