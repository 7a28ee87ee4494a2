"""Durable writes: every file of a run that must survive a crash goes through these functions.

Each raises OSError with the file's name when the disk does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Errors get the name ``path`` if they have none, as system calls on descriptors do, or that of ``temporary``."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Writes ``data`` to a new file ``path`` and flushes it to the disk."""
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of ``data``; the system may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Log:
    """A file that lines are appended to; what was appended before ``sync`` survives a crash of the machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # A pipe in its place would wait for a reader.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)

    @property
    def num_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def append(self, line: str) -> None:
        """Adds ``line`` and a line break."""
        with naming(self.path):
            write_all(self._descriptor, f"{line}\n".encode())

    def sync(self) -> None:
        with naming(self.path):
            os.fsync(self._descriptor)

    def rewind(self, num_bytes: int) -> None:
        """Drops everything after the first ``num_bytes`` bytes."""
        with naming(self.path):
            os.ftruncate(self._descriptor, min(num_bytes, self.num_bytes))

    def close(self) -> None:
        os.close(self._descriptor)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a file or folder and flushes the parent folder, so that the rename survives a crash."""
    with naming(target):
        os.rename(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk."""
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a new empty file beside ``path`` to write to; when the block ends it takes the place of ``path`` at once.

    Readers see the old or the new file, never a part. No other writer of ``path`` gets the same file, and an error
    removes it. Not flushed to the disk, which costs some 11 ms a file, minutes for a data set's images: for files that
    can be made again.
    """
    # Not the whole name: one of 255 bytes is allowed, a longer one is not.
    temporary = path.with_name(f".{path.name[:50]}.{os.urandom(8).hex()}.new")
    with naming(path, temporary):
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield temporary
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def replace_bytes(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data`` atomically, as ``replacing`` does, and durably."""
    with replacing(path) as temporary:
        write_durably(temporary, data)
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """``replace_bytes`` of UTF-8."""
    replace_bytes(path, text.encode())


def replace_json(path: Path, value: Any) -> None:
    """``replace_text`` of indented JSON; NaN and infinities are refused."""
    replace_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
