"""CIFAR-100 from its archive of Python pickles, without running any of their code."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from slca_fast.data.prepare.inert_pickle import Array, read_pickled_dict, text_of
from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish, require_apart
from slca_fast.data.prepare.sound import Job, class_folders
from slca_fast.data.prepare.unpack import find_below, unpacked
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
    """``source``: cifar-100-python.tar.gz or its folder. Writes PNGs named by their position in the archive."""
    del link
    folder = find_below(unpacked(source, root), "meta").parent
    require_apart(folder, root)
    meta = folder / "meta"
    names = _list(read_pickled_dict(meta), "fine_label_names", meta)
    folders = class_folders((text_of(name, meta) for name in names), meta)
    jobs = []
    for split in ("train", "test"):
        pixels, labels = _images(folder / split, len(folders))
        jobs += [
            Job(f"{split}/{folders[label]}/{i:05d}.png", make=functools.partial(_save, pixels[i]))
            for i, label in enumerate(labels)
        ]
    expected = DATASETS["cifar100"].counts if check_counts else None
    return finish("cifar100", root, jobs, source=source, expected=expected, progress=progress)


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
