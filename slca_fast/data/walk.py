"""Which files below a folder are images: the one rule of training folders, ``prepare`` and ``predict``.

Hidden files and folders, and those that systems leave behind, are passed over at every depth; links to folders are
followed; files with an image's name are images, files of other names only by their first bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from slca_fast.data.kinds import NUM_BYTES, has_image_name, image_kind, is_unread, not_read, unread_by_name

_LEFT_BY_SYSTEMS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")


@dataclass(frozen=True)
class Found:
    """What is below one folder; paths are relative to the root."""

    images: list[tuple[str, str]] = field(default_factory=list)
    """(folder, file name)."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of what cannot be used and must not be passed over."""
    notes: Counter = field(default_factory=Counter)
    """How many files were passed over, and why."""


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: hidden, or left behind by a system."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder`` that count; raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_passed_over(entry.name))


def find_images(root: Path, below: str = "") -> Found:
    """All images below ``<root>/<below>``, in the order of folders and names that torchvision has."""
    found = Found()
    parts = Path(below).parts
    above = [root.joinpath(*parts[:n]) for n in range(len(parts))]
    _walk(root, below, tuple(_identity(os.stat(folder)) for folder in above), found)
    found.images.sort()
    found.problems.sort()
    return found


def _walk(root: Path, folder: str, above: tuple, found: Found) -> None:
    full = root / folder
    try:
        status = os.stat(full)
        with os.scandir(full) as listed:
            entries = list(listed)
    except OSError as error:
        found.problems.append((folder, f"folder cannot be read ({error.strerror})"))
        return
    identity = _identity(status)
    if identity in above:
        found.problems.append((folder, "looping symlink: leads back to a folder above it"))
        return
    for entry in entries:
        path = os.path.join(folder, entry.name)
        if is_passed_over(entry.name):
            found.notes["hidden files ignored"] += 1
        elif entry.is_symlink() and not os.path.exists(entry.path):
            found.problems.append((path, _broken_link(entry.path)))
        elif entry.is_dir():
            _walk(root, path, (*above, identity), found)
        else:
            _add(entry, folder, path, found)


def _add(entry: os.DirEntry, folder: str, path: str, found: Found) -> None:
    named = has_image_name(entry.name)
    if not entry.is_file():
        if named:
            found.problems.append((path, "not a regular file"))
        else:
            found.notes["other files ignored"] += 1
        return
    kind = None if named else image_kind(_start_of(entry.path)) or unread_by_name(entry.name)
    if kind is not None and is_unread(kind):
        found.problems.append((path, not_read(kind)))
    elif named or kind:
        found.images.append((folder, entry.name))
    else:
        found.notes["other files ignored"] += 1


def _start_of(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(NUM_BYTES)
    except OSError:
        return b""


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _broken_link(path: str) -> str:
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"dangling symlink to {os.readlink(path)}"
    except OSError as error:
        return f"looping symlink ({error.strerror})"
    return "symlink cannot be followed"
