"""Reads the small text files of a source; whatever is not as it should be is refused with the file's name."""

from __future__ import annotations

from pathlib import Path

from slca_fast.errors import DataError

_MOST_BYTES = 256 << 20


def read_bytes(file: Path, most: int = _MOST_BYTES) -> bytes:
    """The contents of a regular file; DataError for one that is absent, no file, or longer than ``most`` bytes."""
    try:
        if not file.is_file():
            raise DataError(f"{file} is not a regular file" if file.exists() else f"no {file.name} in {file.parent}")
        size = file.stat().st_size
        if size > most:
            raise DataError(f"{file} has {size:,} bytes: it cannot be what its name says")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from None


def read_lines(file: Path) -> list[tuple[int, str]]:
    """(number, text) of every line that is not blank; DataError also for a file that is no UTF-8."""
    try:
        lines = read_bytes(file).decode().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8 ({error})") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_list(file: Path) -> list[str]:
    """First word of each line that is not blank."""
    return [line.split()[0] for _, line in read_lines(file)]
