"""CIFAR-100 from its archive of Python pickles, without running any of their code, or from class folders."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from slca_fast.data.prepare.cifar100_folders import jobs_of_class_folders
from slca_fast.data.prepare.inert_pickle import Array, read_pickled_dict, text_of
from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish, require_apart
from slca_fast.data.prepare.sound import Job, class_folders
from slca_fast.data.prepare.unpack import first_below, unpacked
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError

_BYTES_PER_IMAGE = 3 * 32 * 32


def prepare_cifar100(
    source: Path,
    root: Path,
    *,
    link: Link = "hard",
    check_counts: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """``source``: cifar-100-python.tar.gz or its folder, or train/ and test/ of class folders; or what holds either.

    Images of the archive become PNGs named by their position in it; files of class folders keep their names.
    """
    place = unpacked(source, root)
    meta, test = first_below(place, "meta"), first_below(place, "test")
    if meta is not None and meta.is_file():
        require_apart(meta.parent, root)
        jobs, left_out = _jobs_of_pickles(meta), ()
    elif test is not None and test.is_dir():
        require_apart(source, root)
        jobs, left_out = jobs_of_class_folders(test.parent)
    else:
        raise DataError(f"{source} holds neither meta, train and test of pickles nor train/ and test/ of class folders")
    options = {"left_out": list(left_out)} if left_out else {}
    expected = DATASETS["cifar100"].counts if check_counts else None
    known = {"source": source, "link": link, "options": options}
    return finish("cifar100", root, jobs, expected=expected, progress=progress, **known)


def _jobs_of_pickles(meta: Path) -> list[Job]:
    names = _list(read_pickled_dict(meta), "fine_label_names", meta)
    folders = class_folders((text_of(name, meta) for name in names), meta)
    jobs = []
    for split in ("train", "test"):
        pixels, labels = _images(meta.parent / split, len(folders))
        jobs += [
            Job(f"{split}/{folders[label]}/{i:05d}.png", make=functools.partial(_save, pixels[i]))
            for i, label in enumerate(labels)
        ]
    return jobs


def _save(pixels_CHW: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels_CHW.transpose(1, 2, 0)).save(path, format="PNG")


def _images(path: Path, num_classes: int) -> tuple[np.ndarray, list[int]]:
    """(uint8 [N, 3, 32, 32], N labels) of one split."""
    content = read_pickled_dict(path)
    labels, data = _list(content, "fine_labels", path), content.get("data")
    rows = data.rows(_BYTES_PER_IMAGE) if isinstance(data, Array) else None
    if rows is None:
        raise DataError(f"{path}: its data is not N x {_BYTES_PER_IMAGE} bytes")
    if len(labels) != len(rows) or not all(type(c) is int and 0 <= c < num_classes for c in labels):
        raise DataError(f"{path}: labels and images do not fit together")
    return rows.reshape(-1, 3, 32, 32), labels


def _list(content: dict[str, object], name: str, path: Path) -> list:
    value = content.get(name)
    if not isinstance(value, list):
        raise DataError(f"{path} has no {name}")
    return value
