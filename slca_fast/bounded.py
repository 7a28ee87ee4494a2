"""Reading files that anyone may have edited: regular files of bounded size, JSON of bounded depth."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from slca_fast.errors import UserError

MOST_DEPTH = 32
"""How deep lists and mappings of a file lie within each other at most."""


class Unreadable(UserError):
    """A file that is missing, no file, too large or not what it should be; the message names it and the reason."""


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The bytes of a regular file; raises Unreadable for anything else, and for more than ``most_bytes``."""
    try:
        # A pipe without a writer would wait.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Unreadable(f"{path}: not a regular file")
            if found.st_size > most_bytes:
                raise Unreadable(f"{path}: {found.st_size:,} bytes, of which at most {most_bytes:,} are read")
            return file.read(most_bytes)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def parse_json(data: bytes | str, where: object) -> Any:
    """The value of JSON ``data``, NaN and infinities as None; raises Unreadable, naming ``where``, for other text."""
    try:
        value = json.loads(data, parse_constant=lambda name: None)
    except RecursionError as error:
        raise Unreadable(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise Unreadable(f"{where} is not valid JSON ({str(error)[:200]})") from error
    if not is_shallow(value):
        raise Unreadable(f"{where} is nested too deeply")
    return value


def is_shallow(value: Any) -> bool:
    """Whether lists and mappings of a plain value lie at most ``MOST_DEPTH`` deep."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list | tuple))
        level = [part for parts in inner for part in parts if isinstance(part, dict | list | tuple)]
        if not level:
            return True
    return False
