"""The list of images of a data set, with what their headers say; and everything that can be wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from slca_fast.config import DataConfig
from slca_fast.data.folder import FolderListing, list_split
from slca_fast.data.images import SWAPPING_ORIENTATIONS, BadImage, Header, read_header
from slca_fast.errors import DataError

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""
_CHUNK = 64
_MOST_LISTED = 1000


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """N images of one split. Sizes are those a decoder returns (after EXIF rotation where asked for)."""

    root: Path
    paths: tuple[str, ...]
    """Relative to root, in torchvision's ImageFolder order."""
    class_names: tuple[str, ...]
    """Sorted; a label is a position in it."""
    label_N: np.ndarray
    """int64 [N]."""
    height_N: np.ndarray
    """int32 [N], pixels."""
    width_N: np.ndarray
    """int32 [N], pixels."""
    num_bytes_N: np.ndarray
    """int64 [N], file sizes."""
    format: tuple[str, ...]
    """Pillow's name of each file's format, by content."""
    orientation_N: np.ndarray
    """uint8 [N], EXIF orientation 1..8."""
    plain_N: np.ndarray
    """bool [N]: grey or RGB JPEG; every other file is always decoded by Pillow."""
    domain_N: np.ndarray | None = None
    """int64 [N], position in domain_names; None without domains."""
    domain_names: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        return len(self.paths)

    def path_of(self, sample_id: int) -> Path:
        """The file of one sample."""
        return self.root / self.paths[sample_id]

    def subset(self, ids: np.ndarray) -> ImageIndex:
        """The images at these positions, in this order; positions are counted anew."""
        ids = np.asarray(ids)
        if ids.dtype == bool:
            ids = np.flatnonzero(ids)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in ids),
            format=tuple(self.format[i] for i in ids),
            label_N=self.label_N[ids],
            height_N=self.height_N[ids],
            width_N=self.width_N[ids],
            num_bytes_N=self.num_bytes_N[ids],
            orientation_N=self.orientation_N[ids],
            plain_N=self.plain_N[ids],
            domain_N=None if self.domain_N is None else self.domain_N[ids],
        )


@dataclass(frozen=True)
class Problem:
    """One file that cannot be used."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Train and test images of one data set, and what the preflight saw."""

    train: ImageIndex
    test: ImageIndex
    class_names: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    """Files left out (policy quarantine)."""
    notes: dict[str, int] = field(default_factory=dict)
    """How many files need which conversion, or were ignored and why."""


def load_dataset(config: DataConfig, progress: Progress | None = None) -> ImageDataset:
    """Index of ``config.root`` (none: the embedded digits, written out on first use).

    Raises DataError: one line for a wrong layout, or the list of all bad files under policy ``fail``.
    """
    root = embedded_root() if config.root is None else Path(config.root).expanduser()
    train_listing, test_listing = _list_root(root)
    _require_same_classes(train_listing, test_listing)
    listings = (train_listing, test_listing)
    total, done = sum(len(listing.paths) for listing in listings), 0
    indices, problems, notes = [], [], Counter()
    for listing in listings:
        report = None if progress is None else lambda count, base=done: progress(base + count, total)
        index, bad, found = index_listing(listing, config, report)
        indices.append(index)
        problems += bad
        notes.update(found)
        done += len(listing.paths)
    if problems and config.policy == "fail":
        raise DataError(describe_problems(root, problems))
    for listing, index in zip(listings, indices):
        _require_every_class(listing, index)
    return ImageDataset(*indices, class_names=train_listing.class_names, problems=tuple(problems), notes=dict(notes))


def scan_image_folder(root: str | Path, split: str, config: DataConfig | None = None) -> ImageIndex:
    """Index of one split folder ``<root>/<split>/<class>/**/<image>``; raises DataError on any bad file."""
    listing = list_split(Path(root), split)
    index, problems, _ = index_listing(listing, config or DataConfig(), None)
    if problems or listing.problems:
        raise DataError(describe_problems(Path(root), problems))
    return index


def index_listing(
    listing: FolderListing,
    config: DataConfig,
    report: Callable[[int], None] | None,
) -> tuple[ImageIndex, list[Problem], Counter]:
    """Read all headers with threads: (index of the good files, the bad ones, counts of conversions)."""
    problems = [Problem(path, reason) for path, reason in listing.problems]
    notes = Counter(listing.notes)
    headers: list[Header | BadImage] = []
    with ThreadPoolExecutor(config.num_workers or os.cpu_count() or 1) as pool:
        chunks = [listing.paths[i : i + _CHUNK] for i in range(0, len(listing.paths), _CHUNK)]
        for read in pool.map(lambda chunk: _read_chunk(listing.root, chunk, config.max_megapixels), chunks):
            headers += read
            if report is not None:
                report(len(headers))
    good = []
    for i, header in enumerate(headers):
        if isinstance(header, BadImage):
            problems.append(Problem(listing.paths[i], str(header)))
        else:
            good.append(i)
            notes.update(header.notes)
    return _index_of(listing, good, headers, config.exif_orientation), problems, notes


def _read_chunk(root: Path, paths: list[str], max_megapixels: float) -> list[Header | BadImage]:
    results = []
    for path in paths:
        try:
            results.append(read_header(root / path, max_megapixels))
        except BadImage as error:
            results.append(error)
    return results


def _index_of(listing: FolderListing, good: list[int], headers: list, exif_orientation: bool) -> ImageIndex:
    kept = [headers[i] for i in good]

    def column(values: Iterable, dtype: type) -> np.ndarray:
        return np.array(list(values), dtype=dtype)

    height_N = column((h.height for h in kept), np.int32)
    width_N = column((h.width for h in kept), np.int32)
    orientation_N = column((h.orientation for h in kept), np.uint8)
    if exif_orientation:
        swap_N = np.isin(orientation_N, SWAPPING_ORIENTATIONS)
        height_N, width_N = np.where(swap_N, width_N, height_N), np.where(swap_N, height_N, width_N)
    domain_N = None if listing.domains is None else column((listing.domains[i] for i in good), np.int64)
    return ImageIndex(
        root=listing.root,
        paths=tuple(listing.paths[i] for i in good),
        class_names=listing.class_names,
        label_N=column((listing.labels[i] for i in good), np.int64),
        height_N=height_N,
        width_N=width_N,
        num_bytes_N=column((h.num_bytes for h in kept), np.int64),
        format=tuple(h.format for h in kept),
        orientation_N=orientation_N,
        plain_N=column((h.plain for h in kept), bool),
        domain_N=domain_N,
        domain_names=listing.domain_names,
    )


def embedded_root() -> Path:
    """The embedded handwritten digits as an image folder, written on first use into the cache folder."""
    from slca_fast.embedded.digits import write_digits

    return Path(write_digits(cache_folder() / "digits"))


def cache_folder() -> Path:
    """SLCA_FAST_CACHE, or slca_fast under XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("SLCA_FAST_CACHE"):
        return Path(os.environ["SLCA_FAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slca_fast"


def describe_problems(root: Path, problems: list[Problem]) -> str:
    """Text of a DataError: how many files are bad, each with its reason."""
    listed = [f"  {problem}" for problem in problems[:_MOST_LISTED]]
    if len(problems) > _MOST_LISTED:
        listed.append(f"  ... and {len(problems) - _MOST_LISTED} more")
    files = "file" if len(problems) == 1 else "files"
    return "\n".join(
        [
            f"{len(problems)} bad {files} under {root} (--data.policy quarantine would leave them out):",
            *listed,
        ]
    )


def _list_root(root: Path) -> tuple[FolderListing, FolderListing]:
    test_name = find_test_split(root)
    return list_split(root, "train"), list_split(root, test_name)


def find_test_split(root: Path) -> str:
    """``test`` or ``val``, whichever holds class folders (``test`` when both do), or DataError."""
    expected = f"expected {root}/train/<class>/<image> and {root}/val or {root}/test likewise"
    if not root.exists():
        raise DataError(f"{expected}, but {root} does not exist")
    if not root.is_dir():
        raise DataError(f"{expected}, but {root} is a file")
    try:
        found = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(root))
    except OSError as error:
        raise DataError(f"{expected}, but {root} cannot be read ({error.strerror})") from None
    with_classes = [name for name in ("train", "test", "val") if _has_folders(root / name)]
    if "train" in with_classes and len(with_classes) > 1:
        return with_classes[1]
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise DataError(f"{expected}, but found {shown or 'an empty folder'}" + _layout_hint(root, found, with_classes))


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
        return path.is_dir() and any(entry.is_dir() for entry in os.scandir(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def _require_same_classes(train: FolderListing, test: FolderListing) -> None:
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


def _require_every_class(listing: FolderListing, index: ImageIndex) -> None:
    missing = [listing.class_names[i] for i in np.setdiff1d(np.arange(len(listing.class_names)), index.label_N)]
    if missing:
        raise DataError(
            f"no usable image is left in {listing.root / listing.split} of "
            f"{_count(missing, 'class', 'classes')}: {_some(missing)}"
        )


def _class_of(listing: FolderListing, path: str) -> int:
    parts = path.split(os.sep)
    return listing.class_names.index(parts[1]) if len(parts) > 1 and parts[1] in listing.class_names else -1


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _count(items: list, one: str, many: str | None = None) -> str:
    return f"{len(items)} {one if len(items) == 1 else many or one + 's'}"
