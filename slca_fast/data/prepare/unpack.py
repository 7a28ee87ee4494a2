"""Unpacks archives that may be hostile: nothing lands outside, no links, no devices, no archive bombs.

Every archive is read to its end, so that every checksum in it is compared.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from slca_fast.data.prepare.place import UNPACKED
from slca_fast.data.prepare.sound import safe_relative
from slca_fast.errors import DataError

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_MOST_EXPANSION = 200
_MOST_NAME_BYTES = 1 << 20
_BLOCK = 1 << 20
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError, MemoryError, LookupError),
)
"""What Python's readers raise on damaged archives."""
_BAD_PATH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
_NAMES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Kinds of tar members that tarfile reads whole."""
_Member = tuple[str, int, Callable[[], IO[bytes]]]


def is_archive(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(_SUFFIXES)


def unpacked(source: Path, root: Path) -> Path:
    """The folder of ``source``: itself, or the archive unpacked below ``root`` (once; redone if interrupted).

    Raises DataError for a damaged archive and for members that would land outside.
    """
    if source.is_dir():
        return source
    if not is_archive(source) or not source.is_file():
        raise DataError(f"{source} is neither a folder nor an archive ({', '.join(_SUFFIXES)})")
    target, done = root / UNPACKED / source.name, root / UNPACKED / f"{source.name}.done"
    status = source.stat()
    mark = json.dumps([str(source.resolve()), status.st_size, status.st_mtime_ns])
    if done.exists() and done.read_text() == mark:
        return target
    shutil.rmtree(target, ignore_errors=True)
    done.unlink(missing_ok=True)
    target.mkdir(parents=True)
    try:
        with _opened(source) as members:
            _unpack(source, members, target)
    except DataError as error:
        raise error if str(source) in str(error) else DataError(f"{source}: {error}") from None
    except _DAMAGE as error:
        raise _damaged(source, error) from None
    except OSError as error:
        if error.errno is not None and error.errno not in _BAD_PATH:
            raise
        raise _damaged(source, error) from None
    done.write_text(mark)
    return target


def _damaged(source: Path, error: Exception) -> DataError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return DataError(f"{source} is damaged or no archive ({' '.join(reason.split())[:300]})")


def discard_unpacked(root: Path) -> None:
    """Remove what ``unpacked`` wrote; images hard-linked from there stay."""
    shutil.rmtree(root / UNPACKED, ignore_errors=True)


@contextmanager
def _opened(source: Path) -> Iterator[Iterator[_Member]]:
    """Yields an iterator of (name, size, open member function) over regular files; DataError for anything odd."""
    if source.name.lower().endswith(".zip"):
        with zipfile.ZipFile(source) as archive:
            yield _zip_members(source, archive)
    else:
        with tarfile.open(source, "r:*", tarinfo=_StrictMember) as archive:
            yield _tar_members(source, archive)
            assert archive.fileobj is not None
            _read_to_the_end(source, cast("IO[bytes]", archive.fileobj))


def _zip_members(source: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    if not _lists_all(source, archive):
        raise DataError(f"{source} is damaged: its directory does not list as many files as it says")
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir():
            continue
        if kind not in (0, stat.S_IFREG):
            raise DataError(f"{source} holds {member.filename[:200]!r}, which is no regular file")
        yield member.filename, member.file_size, lambda member=member: archive.open(member)


def _lists_all(source: Path, archive: zipfile.ZipFile) -> bool:
    """Whether as many files were found as the record at the end says, which zipfile does not compare."""
    with open(source, "rb") as file:
        file.seek(-22 - len(archive.comment), os.SEEK_END)
        said = int.from_bytes(file.read(12)[10:], "little")
    # 65535 stands for a number in a record of 64 bits; older writers count modulo 65536.
    return said in (0xFFFF, len(archive.infolist()) % 0x10000)


class _StrictMember(tarfile.TarInfo):
    """Damage that tarfile would take for the end of the archive is an error, and so are names without end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue] - the stubs lack it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, where a member or the end mark should be") from None
        if member.type in _NAMES and member.size > _MOST_NAME_BYTES:
            raise tarfile.ReadError(f"a name of {member.size:,} bytes")
        return member


def _tar_members(source: Path, archive: tarfile.TarFile) -> Iterator[_Member]:
    for member in archive:
        if member.isdir():
            continue
        if not member.isreg():
            raise DataError(f"{source} holds {member.name[:200]!r}, which is no regular file")
        yield member.name, member.size, lambda member=member: cast("IO[bytes]", archive.extractfile(member))


def _unpack(source: Path, members: Iterator[_Member], target: Path) -> None:
    budget = _budget(source)
    for name, size, open_member in members:
        path = target / safe_relative(name)
        budget -= size
        if budget < 0:
            raise _bomb(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as member, open(path, "xb") as file:
            shutil.copyfileobj(member, file, _BLOCK)
            if file.tell() != size:
                raise DataError(f"{source}: {name[:200]!r} is not as long as the archive says")


def _read_to_the_end(source: Path, stream: IO[bytes]) -> None:
    """The checksums of gzip, xz and bzip2 stand behind the archive's end mark, and nothing else but zeros."""
    budget = _budget(source)
    while block := stream.read(_BLOCK):
        budget -= len(block)
        if budget < 0:
            raise _bomb(source)
        if block.strip(b"\0"):
            raise DataError(f"{source} is damaged: its end mark stands before its end")


def _budget(source: Path) -> int:
    return max(source.stat().st_size * _MOST_EXPANSION, 1 << 20)


def _bomb(source: Path) -> DataError:
    return DataError(f"{source} expands to more than {_MOST_EXPANSION} times its size: refused")


def first_below(folder: Path, name: str, depth: int = 3) -> Path | None:
    """The file or folder called ``name`` in ``folder`` or at most ``depth - 1`` levels below, if there is one."""
    level = [folder]
    for step in range(depth):
        if step:
            level = [child for parent in level for child in sorted(parent.iterdir()) if child.is_dir()]
        for candidate in level:
            if (candidate / name).exists():
                return candidate / name
    return None


def find_below(folder: Path, name: str) -> Path:
    """What ``first_below`` finds; DataError if it is not there."""
    if (found := first_below(folder, name)) is None:
        raise DataError(f"no {name} in {folder}")
    return found


def inner_folder(folder: Path, name: str) -> Path:
    """The folder called ``name`` in ``folder`` where there is one, as archives have it; else ``folder`` itself."""
    return folder / name if (folder / name).is_dir() else folder
