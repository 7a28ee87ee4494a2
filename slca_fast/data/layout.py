"""What is wrong with the folders of a data set, in one line each: wrong root, classes that differ, empty ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slca_fast.data.folder import DOMAIN_FILE, FolderListing
from slca_fast.data.walk import is_passed_over, subfolders
from slca_fast.errors import DataError

_MOST_CELLS = 100


def find_test_split(root: Path) -> str:
    """``test`` or ``val``, whichever holds class folders (``test`` when both do), or DataError."""
    expected = f"expected {root}/train/<class>/<image> and {root}/val or {root}/test likewise"
    if not root.exists():
        raise DataError(f"{expected}, but {root} does not exist")
    if not root.is_dir():
        raise DataError(f"{expected}, but {root} is a file")
    try:
        shown = [entry for entry in os.scandir(root) if not is_passed_over(entry.name)]
        found = sorted(entry.name + "/" * entry.is_dir() for entry in shown)
    except OSError as error:
        raise DataError(f"{expected}, but {root} cannot be read ({error.strerror})") from None
    with_classes = [name for name in ("train", "test", "val") if _has_folders(root / name)]
    if "train" in with_classes and len(with_classes) > 1:
        return with_classes[1]
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise DataError(f"{expected}, but found {listed or 'an empty folder'}" + _layout_hint(root, found, with_classes))


def _layout_hint(root: Path, found: list[str], with_classes: list[str]) -> str:
    if "train" in with_classes:
        return ": there is no val/ or test/ with class folders"
    if root.name in ("train", "val", "test"):
        return f"; give its parent {root.parent}"
    inside = [name for name in found if name.endswith("/") and (root / name / "train").is_dir()]
    if inside:
        return f"; did you mean {root / inside[0]}?"
    return ""


def _has_folders(path: Path) -> bool:
    try:
        return path.is_dir() and bool(subfolders(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def require_same_classes(train: FolderListing, test: FolderListing) -> None:
    """DataError unless both splits have the same class folders, and none of them is empty."""
    only_train = [name for name in train.class_names if name not in set(test.class_names)]
    only_test = [name for name in test.class_names if name not in set(train.class_names)]
    if only_train or only_test:
        parts = [
            f"only in {listing.split}/: {_some(names)}"
            for listing, names in ((train, only_train), (test, only_test))
            if names
        ]
        raise DataError(
            f"the classes of {train.split}/ and {test.split}/ under {train.root} differ, so their labels "
            f"would not agree; {'; '.join(parts)}"
        )
    if not train.paths and not test.paths and not train.problems and not test.problems:
        raise DataError(f"no images under {train.root}: expected {train.root}/train/<class>/<image>")
    for listing in (train, test):
        tried = set(listing.labels) | {_class_of(listing, path) for path, _ in listing.problems}
        empty = [name for i, name in enumerate(listing.class_names) if i not in tried]
        if empty:
            raise DataError(f"{_count(empty, 'empty class folder')} in {listing.root / listing.split}: {_some(empty)}")


def require_every_class(listing: FolderListing, label_N: np.ndarray) -> None:
    """DataError unless every class has an image left after bad files are out."""
    missing = [listing.class_names[i] for i in np.setdiff1d(np.arange(len(listing.class_names)), label_N)]
    if missing:
        raise DataError(
            f"no usable image is left in {listing.root / listing.split} of "
            f"{_count(missing, 'class', 'classes')}: {_some(missing)}"
        )


@dataclass(frozen=True)
class EmptyCell:
    """A class that has no image of one split in one domain: its label is not learnt, or not tested."""

    split: str
    domain: str
    class_name: str

    def __str__(self) -> str:
        return f"no image of class {self.class_name} in domain {self.domain} in {self.split}/"


def empty_cells(listing: FolderListing, label_N: np.ndarray, domain_N: np.ndarray | None) -> list[EmptyCell]:
    """Every class without an image in a domain, of the images that are left; none without domains.

    Raises DataError for a domain without any image.
    """
    if domain_N is None:
        return []
    count_DC = np.zeros((len(listing.domain_names), len(listing.class_names)), dtype=np.int64)
    np.add.at(count_DC, (domain_N, label_N), 1)
    missing = [listing.domain_names[d] for d in np.flatnonzero(count_DC.sum(1) == 0)]
    if missing:
        raise DataError(
            f"no usable image is left in {listing.root / listing.split} of {_count(missing, 'domain')}: "
            f"{_some(missing)} (expected <class>/{missing[0]}/<image>, or {DOMAIN_FILE} without it)"
        )
    return [
        EmptyCell(listing.split, listing.domain_names[d], listing.class_names[c]) for d, c in np.argwhere(count_DC == 0)
    ]


def describe_cells(cells: Sequence[EmptyCell]) -> list[str]:
    """A line for each of ``cells``, the first 100 of many."""
    lines = [str(cell) for cell in cells[:_MOST_CELLS]]
    if len(cells) > _MOST_CELLS:
        lines.append(f"and {len(cells) - _MOST_CELLS} more classes without images in a domain")
    return lines


def _class_of(listing: FolderListing, path: str) -> int:
    parts = path.split(os.sep)
    return listing.class_names.index(parts[1]) if len(parts) > 1 and parts[1] in listing.class_names else -1


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _count(items: list, one: str, many: str | None = None) -> str:
    return f"{len(items)} {one if len(items) == 1 else many or one + 's'}"
