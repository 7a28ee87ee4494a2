"""Durable writes: every file of a run that must survive a crash goes through these functions.

Each raises OSError with the file's name when the disk does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of system calls on descriptors know no file name: they get ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Writes ``data`` to a new file ``path`` and flushes it to the disk."""
    with _naming(path):
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
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    @property
    def num_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def append(self, line: str) -> None:
        """Adds ``line`` and a line break."""
        with _naming(self.path):
            write_all(self._descriptor, f"{line}\n".encode())

    def sync(self) -> None:
        with _naming(self.path):
            os.fsync(self._descriptor)

    def rewind(self, num_bytes: int) -> None:
        """Drops everything after the first ``num_bytes`` bytes."""
        with _naming(self.path):
            os.ftruncate(self._descriptor, min(num_bytes, self.num_bytes))

    def close(self) -> None:
        os.close(self._descriptor)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a file or folder and flushes the parent folder, so that the rename survives a crash."""
    with _naming(target):
        os.rename(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk."""
    with _naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replaces ``path`` by ``text`` atomically: readers see the old or the new file, never a part."""
    temporary = path.with_name(f".{path.name}.new")
    write_durably(temporary, text.encode())
    rename_durably(temporary, path)


def replace_json(path: Path, value: Any) -> None:
    """``replace_text`` of indented JSON; NaN and infinities are refused."""
    replace_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
