"""Unpacks archives that may be hostile: nothing lands outside, no links, no devices, no archive bombs."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slca_fast.data.prepare.place import UNPACKED
from slca_fast.data.prepare.sound import safe_relative
from slca_fast.errors import DataError

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_MOST_EXPANSION = 200
_DONE = ".done"


def is_archive(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(_SUFFIXES)


def unpacked(source: Path, root: Path) -> Path:
    """The folder of ``source``: itself, or the archive unpacked below ``root`` (once; redone if interrupted).

    Raises DataError for a damaged archive and for members that would land outside.
    """
    if source.is_dir():
        return source
    if not is_archive(source):
        raise DataError(f"{source} is neither a folder nor an archive ({', '.join(_SUFFIXES)})")
    target = root / UNPACKED / source.name
    if (target / _DONE).exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        with _opened(source) as members:
            _unpack(source, members, target)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{source} is damaged or no archive ({error})") from None
    (target / _DONE).touch()
    return target


def discard_unpacked(root: Path) -> None:
    """Remove what ``unpacked`` wrote; images hard-linked from there stay."""
    shutil.rmtree(root / UNPACKED, ignore_errors=True)


@contextmanager
def _opened(source: Path) -> Iterator[Iterator[tuple[str, int, object]]]:
    """Yields an iterator of (name, size, open member function) over regular files; DataError for anything odd."""
    if source.name.lower().endswith(".zip"):
        with zipfile.ZipFile(source) as archive:
            yield _zip_members(source, archive)
    else:
        with tarfile.open(source, "r:*") as archive:
            yield _tar_members(source, archive)


def _zip_members(source: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, int, object]]:
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir():
            continue
        if kind not in (0, stat.S_IFREG):
            raise DataError(f"{source} holds {member.filename!r}, which is no regular file")
        yield member.filename, member.file_size, lambda member=member: archive.open(member)


def _tar_members(source: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, int, object]]:
    for member in archive:
        if member.isdir():
            continue
        if not member.isreg():
            raise DataError(f"{source} holds {member.name!r}, which is no regular file")
        yield member.name, member.size, lambda member=member: archive.extractfile(member)


def _unpack(source: Path, members: Iterator, target: Path) -> None:
    budget = max(source.stat().st_size * _MOST_EXPANSION, 1 << 20)
    for name, size, open_member in members:
        path = target / safe_relative(name)
        budget -= size
        if budget < 0:
            raise DataError(f"{source} expands to more than {_MOST_EXPANSION} times its size: refused")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as member, open(path, "xb") as file:
            shutil.copyfileobj(member, file, 1 << 20)
        if os.path.getsize(path) != size:
            raise DataError(f"{source}: {name!r} is not as long as the archive says")


def find_below(folder: Path, name: str, depth: int = 3) -> Path:
    """The file or folder called ``name`` in ``folder`` or at most ``depth`` levels below; DataError if not there."""
    level = [folder]
    for _ in range(depth):
        for candidate in level:
            if (candidate / name).exists():
                return candidate / name
        level = [child for parent in level for child in sorted(parent.iterdir()) if child.is_dir()]
    raise DataError(f"no {name} in {folder}")


def inner_folder(folder: Path, name: str) -> Path:
    """The folder called ``name`` in ``folder`` where there is one, as archives have it; else ``folder`` itself."""
    return folder / name if (folder / name).is_dir() else folder
