"""Puts images into the prepared folder: atomically, skipping what is there, and counting at the end."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from slca_fast.data.folder import EXTENSIONS
from slca_fast.errors import DataError
from slca_fast.files import replace_text, replacing

Link = Literal["hard", "copy"]
Progress = Callable[[int, int], None]
RECORD = "prepared.json"


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation left behind; also written to ``<root>/prepared.json``."""

    dataset: str
    root: str
    num_train: int
    num_test: int
    num_classes: int
    num_new: int
    """Files that were not there before this call."""
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.dataset}: {self.num_train} train and {self.num_test} test images of {self.num_classes} classes "
            f"in {self.root} ({self.num_new} new)"
        )


@dataclass(frozen=True)
class Job:
    """One image to be: ``make`` writes it to the path it is given, or ``source`` is linked there."""

    target: str
    """Relative to the root, e.g. train/ant/0.jpg."""
    source: Path | None = None
    make: Callable[[Path], None] | None = None


def safe_relative(name: str) -> str:
    """A path from a list or an archive, normalised; DataError if it would lead outside."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise DataError(f"the path {name!r} leads outside the folder it belongs to")
    return str(path)


def class_folder(name: str) -> str:
    """A class name as one folder name."""
    return name.replace("/", "-").strip()


def finish(
    dataset: str,
    root: Path,
    jobs: Sequence[Job],
    *,
    link: Link = "hard",
    expected: tuple[int, int, int] | None = None,
    options: dict | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Do all jobs, check that exactly these images are there, and record it.

    expected: published numbers of (train images, test images, classes), checked before anything is written.
    Raises DataError when the numbers differ, a target occurs twice, or foreign images are in the way.
    """
    targets = Counter(job.target for job in jobs)
    if len(targets) < len(jobs):
        raise DataError(f"{targets.most_common(1)[0][0]} occurs twice")
    counts = _counts(targets)
    if expected is not None and counts != expected:
        raise DataError(
            f"{dataset}: {_as_text(counts)} where the published data set has {_as_text(expected)}"
            + _swapped(counts, expected)
            + " (--check_counts false skips this check)"
        )
    _require_room(root, targets)
    num_new = _run(root, jobs, link, progress)
    there = set(_images(root))
    if there != set(targets):
        odd = sorted(there ^ set(targets))
        raise DataError(f"{root} does not hold what was prepared: {odd[0]} and {len(odd) - 1} more")
    report = PrepareReport(dataset, str(root), *counts, num_new=num_new, options=options or {})
    root.mkdir(parents=True, exist_ok=True)
    replace_text(root / RECORD, json.dumps(asdict(report), indent=1))
    return report


def _run(root: Path, jobs: Sequence[Job], link: Link, progress: Progress | None) -> int:
    missing = [job for job in jobs if not (root / job.target).exists()]
    done, last = len(jobs) - len(missing), 0.0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(lambda job: _do(root, job, link), missing):
            done += 1
            if progress is not None and (done == len(jobs) or time.monotonic() - last > 0.1):
                progress(done, len(jobs))
                last = time.monotonic()
    return len(missing)


def _do(root: Path, job: Job, link: Link) -> None:
    target = root / job.target
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as path:
        if job.make is not None:
            job.make(path)
        else:
            _place(job.source, path, link)


def _place(source: Path, target: Path, link: Link) -> None:
    target.unlink(missing_ok=True)
    if link == "hard":
        try:
            os.link(source.resolve(), target)
            return
        except FileNotFoundError:
            raise DataError(f"{source} is listed but not there") from None
        except OSError:
            # Another file system, or one without hard links: a copy does as well.
            target.unlink(missing_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise DataError(f"{source} is listed but not there") from None


def _images(root: Path) -> Iterable[str]:
    for split in ("train", "test"):
        for folder, _, names in os.walk(root / split):
            for name in names:
                if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                    yield os.path.relpath(os.path.join(folder, name), root)


def _require_room(root: Path, targets: Counter) -> None:
    foreign = sorted(path for path in _images(root) if path not in targets)
    if foreign:
        raise DataError(
            f"{root} already holds other images ({foreign[0]} and {len(foreign) - 1} more): give an empty --root"
        )


def _counts(targets: Iterable[str]) -> tuple[int, int, int]:
    parts = [target.split("/") for target in targets]
    splits = Counter(part[0] for part in parts)
    return splits["train"], splits["test"], len({part[1] for part in parts})


def _as_text(counts: tuple[int, int, int]) -> str:
    return f"{counts[0]} train and {counts[1]} test images of {counts[2]} classes"


def _swapped(counts: tuple[int, int, int], expected: tuple[int, int, int]) -> str:
    return ": train and test are swapped" if counts[:2] == expected[1::-1] and counts[0] != counts[1] else ""
