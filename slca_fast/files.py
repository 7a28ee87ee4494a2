"""Durable writes: every file of a run that must survive a crash goes through these three functions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_durably(path: Path, data: bytes) -> None:
    """Writes ``data`` to a new file ``path`` and flushes it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a file or folder and flushes the parent folder, so that the rename survives a crash."""
    os.rename(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk."""
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
