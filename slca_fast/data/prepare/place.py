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
from pathlib import Path
from typing import Literal

from slca_fast.data.folder import DOMAIN_FILE
from slca_fast.data.prepare.sound import Job, require_files, require_names
from slca_fast.data.walk import find_images
from slca_fast.errors import DataError, UserError
from slca_fast.files import replace_text, replacing

Link = Literal["hard", "copy"]
Progress = Callable[[int, int], None]
RECORD = "prepared.json"
UNPACKED = ".unpacked"


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
        ) + (f"; left out: {', '.join(self.options['left_out'])}" if self.options.get("left_out") else "")


def require_apart(source: Path, root: Path) -> None:
    """UserError when ``root`` would be made in ``source`` or ``source`` lies where the images of ``root`` go."""
    source, root = source.resolve(), root.resolve()
    if root == source or source in root.parents:
        raise UserError(f"--root {root} lies in --source {source}: give a folder outside it")
    if any(place == source or place in source.parents for place in (root / "train", root / "test")):
        raise UserError(f"--source {source} lies where --root {root} keeps its images: give another --root")


def finish(
    dataset: str,
    root: Path,
    jobs: Sequence[Job],
    *,
    source: Path | None = None,
    link: Link = "hard",
    expected: tuple[int, int, int] | None = None,
    options: dict | None = None,
    domains: Sequence[str] = (),
    progress: Progress | None = None,
) -> PrepareReport:
    """Do all jobs, check that exactly these images are there, and record it.

    source: the user's folder or archive, which no job's file may lie outside of.
    expected: published numbers of (train images, test images, classes).
    domains: names for domains.json.
    Raises DataError before anything is written when the numbers differ, a target occurs twice or cannot be a file's
    name, a source is missing or no regular file, or foreign images are in the way.
    """
    targets = Counter(job.target for job in jobs)
    require_names(targets)
    if len(targets) < len(jobs):
        raise DataError(f"{targets.most_common(1)[0][0]} occurs twice")
    counts = _counts(targets)
    if min(counts) == 0:
        raise DataError(f"{dataset}: {_as_text(counts)}, and both must have some")
    if expected is not None and counts != expected:
        raise DataError(
            f"{dataset}: {_as_text(counts)} where the published data set has {_as_text(expected)}"
            + _swapped(counts, expected)
            + " (--check_counts false skips this check)"
        )
    if source is not None:
        require_files(jobs, (source, root / UNPACKED))
    _require_room(root, targets)
    if domains:
        root.mkdir(parents=True, exist_ok=True)
        replace_text(root / DOMAIN_FILE, json.dumps(list(domains)))
    elif (root / DOMAIN_FILE).exists():
        raise DataError(f"{root / DOMAIN_FILE} is of another data set: give an empty --root")
    num_new = _run(root, jobs, link, progress)
    there = set(_images(root))
    if there != set(targets):
        odd = sorted(there ^ set(targets))
        raise DataError(f"{root} does not hold what was prepared: {odd[0]} and {len(odd) - 1} more")
    report = PrepareReport(dataset, str(root), *counts, num_new=num_new, options=options or {})
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
            assert job.source is not None, job
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
        if (root / split).is_dir():
            yield from (os.path.join(*where) for where in find_images(root, split).images)


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
