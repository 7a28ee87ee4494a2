"""The list of images of a data set, with what their headers say; and everything that can be wrong with it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from slca_fast.config import DataConfig
from slca_fast.data.folder import FolderListing, list_split
from slca_fast.data.headers import HeaderStore, read_headers
from slca_fast.data.images import SWAPPING_ORIENTATIONS, BadImage, allow_megapixels
from slca_fast.data.layout import EmptyCell, empty_cells, find_test_split, require_every_class, require_same_classes
from slca_fast.errors import DataError
from slca_fast.machine.environment import cache_folder

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""
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

    def fingerprint(self) -> str:
        """sha256 over class names, paths, labels, domains, sizes and file sizes: two indices of it feed alike."""
        digest = hashlib.sha256(json.dumps([self.class_names, self.paths, self.domain_names]).encode())
        for column in (self.label_N, self.height_N, self.width_N, self.num_bytes_N, self.domain_N):
            if column is not None:
                digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()

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
    empty_cells: tuple[EmptyCell, ...] = ()
    """Classes that have no image in some domain, by split; no error, but their labels are not learnt or not tested."""


def load_dataset(config: DataConfig, progress: Progress | None = None) -> ImageDataset:
    """Index of ``config.root`` (none: the embedded digits, written out on first use).

    Raises DataError: one line for a wrong layout or a domain without images, or the list of all bad files under
    policy ``fail``.
    """
    allow_megapixels(config.max_megapixels)
    root = embedded_root() if config.root is None else Path(config.root)
    test_name = find_test_split(root)
    listings = (list_split(root, "train"), list_split(root, test_name))
    require_same_classes(*listings)
    store = HeaderStore(root)
    total, done = sum(len(listing.paths) for listing in listings), 0
    indices, problems, notes = [], [], Counter()
    for listing in listings:
        report = None if progress is None else lambda count, base=done: progress(base + count, total)
        index, bad, found = index_listing(listing, config, store, report)
        indices.append(index)
        problems += bad
        notes.update(found)
        done += len(listing.paths)
    store.save()
    if problems and config.policy == "fail":
        raise DataError(describe_problems(root, problems))
    cells: list[EmptyCell] = []
    for listing, index in zip(listings, indices):
        require_every_class(listing, index.label_N)
        cells += empty_cells(listing, index.label_N, index.domain_N)
    single = int((np.bincount(indices[0].label_N) == 1).sum())
    if single:
        notes["classes with one training image"] = single
    train, test = indices
    return ImageDataset(train, test, listings[0].class_names, tuple(problems), dict(notes), tuple(cells))


def scan_image_folder(root: str | Path, split: str, config: DataConfig | None = None) -> ImageIndex:
    """Index of one split folder ``<root>/<split>/<class>/**/<image>``; raises DataError on any bad file."""
    listing = list_split(Path(root), split)
    index, problems, _ = index_listing(listing, config or DataConfig())
    if problems:
        raise DataError(describe_problems(Path(root), problems))
    return index


def index_listing(
    listing: FolderListing,
    config: DataConfig,
    store: HeaderStore | None = None,
    report: Callable[[int], None] | None = None,
) -> tuple[ImageIndex, list[Problem], Counter]:
    """Read all headers of a listing: (index of the good files, the bad ones, counts of conversions)."""
    problems = [Problem(path, reason) for path, reason in listing.problems]
    notes = Counter(listing.notes)
    headers = read_headers(listing, config, store, report)
    good = []
    for i, header in enumerate(headers):
        if isinstance(header, BadImage):
            problems.append(Problem(listing.paths[i], str(header)))
        else:
            good.append(i)
            notes.update(header.notes)
    return _index_of(listing, good, headers, config.exif_orientation), problems, notes


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
