"""Whether names and files of a source may become those of a prepared folder; everything odd is refused by name."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from slca_fast.data.walk import is_passed_over
from slca_fast.errors import DataError

_MOST_NAME_BYTES = 255 - len("..partial")
"""What file systems hold, less what a file is called while it is being written."""
_MOST_PATH_BYTES = 2048


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
        raise DataError(f"the path {name[:200]!r} leads outside the folder it belongs to")
    return str(path)


def class_folders(names: Iterable[str], file: Path) -> list[str]:
    """The class names of ``file`` as folder names; DataError for one that cannot be, and for two alike."""
    folders = [name.strip() for name in names]
    for folder in folders:
        _require_folder_name(folder, file)
    twice = [name for name, count in Counter(folders).items() if count > 1]
    if twice:
        raise DataError(f"{file} has two classes of the name {twice[0]!r}")
    return folders


def _require_folder_name(name: str, file: Path) -> None:
    if not name or "/" in name or "\\" in name or not name.isprintable() or is_passed_over(name):
        raise DataError(f"{file}: the class name {name[:100]!r} cannot be the name of a folder")
    if len(name.encode()) > _MOST_NAME_BYTES:
        raise DataError(f"{file}: the class name {name[:20]!r}... is longer than a folder's name may be")


def require_names(targets: Iterable[str]) -> None:
    """DataError for a target that a file system cannot hold, or that would be passed over once it is there."""
    for target in targets:
        parts = target.split("/")
        if len(parts) < 3:
            raise DataError(f"{target!r} is in no class folder")
        if "\0" in target or any(part in ("", ".", "..") or is_passed_over(part) for part in parts):
            raise DataError(f"{target[:200]!r} is no name for an image of a data set")
        longest = max(len(os.fsencode(part)) for part in parts)
        if longest > _MOST_NAME_BYTES or len(os.fsencode(target)) > _MOST_PATH_BYTES:
            raise DataError(f"the name {target[:60]!r}... is longer than a file's may be")


def require_files(jobs: Sequence[Job], allowed: Iterable[Path]) -> None:
    """DataError unless every job's source is a regular file that lies, links followed, in one of the folders."""
    bases = [os.path.realpath(folder) for folder in allowed]

    @functools.lru_cache(maxsize=4096)
    def real(folder: Path) -> str:
        return os.path.realpath(folder)

    for job in jobs:
        if job.source is None:
            continue
        folder = real(job.source.parent)
        path = os.path.join(folder, job.source.name)
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                folder = os.path.dirname(os.path.realpath(path))
                status = os.stat(path)
        except FileNotFoundError:
            raise DataError(f"{job.source} is listed but not there") from None
        if not any(folder == base or folder.startswith(base.rstrip(os.sep) + os.sep) for base in bases):
            raise DataError(f"{job.source} is a link that leads out of {bases[0]}: put the files themselves there")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{job.source}: not a regular file")
