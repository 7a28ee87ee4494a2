"""Headers of many files at once, remembered from one start to the next."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

from slca_fast.config import DataConfig
from slca_fast.data.folder import FolderListing
from slca_fast.data.images import BadImage, Header, check_megapixels, read_header
from slca_fast.files import replace_text
from slca_fast.machine.environment import cache_folder

_CHUNK = 64
_FORMAT_VERSION = 1
_log = logging.getLogger(__name__)


class HeaderStore:
    """Headers of good files under one root, each valid as long as its file keeps its size and time of change."""

    def __init__(self, root: Path) -> None:
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
        self._file = cache_folder() / "index" / f"{name}.json"
        self._known = self._load()
        self._seen: dict[str, list] = {}

    def find(self, path: str, status: os.stat_result) -> Header | None:
        """The remembered header of an unchanged file."""
        row = self._known.get(path)
        if row is None:
            return None
        header = _header_of(row)
        if header is None or row[0] != status.st_mtime_ns or header.num_bytes != status.st_size:
            return None
        self._seen[path] = row
        return header

    def add(self, path: str, status: os.stat_result, header: Header) -> None:
        """Remember a header that was just read."""
        self._seen[path] = [status.st_mtime_ns, list(astuple(header))]

    def save(self) -> None:
        """Write what was found or added, for the next start; where that cannot be written it is only logged."""
        if self._seen == self._known:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._file, json.dumps({"version": _FORMAT_VERSION, "files": self._seen}))
        except OSError as error:
            _log.warning("the index is not remembered: %s cannot be written (%s)", self._file, error.strerror)

    def _load(self) -> dict[str, list]:
        try:
            content = json.loads(self._file.read_text())
            return dict(content["files"]) if content["version"] == _FORMAT_VERSION else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.warning("the remembered index %s is unreadable (%s): all headers are read again", self._file, error)
            return {}


def _header_of(row: Any) -> Header | None:
    """The header in a row of the remembered index; None for one that this program did not write."""
    try:
        _, values = row
        header = Header(*values[:-1], notes=tuple(values[-1]))
    except (TypeError, ValueError, IndexError, KeyError):
        return None
    sound = (
        all(type(side) is int and 0 < side < 2**31 for side in (header.height, header.width))
        and type(header.num_bytes) is int
        and type(header.orientation) is int
        and 1 <= header.orientation <= 8
        and type(header.format) is str
        and type(header.plain) is bool
        and all(type(note) is str for note in header.notes)
    )
    return header if sound else None


def read_headers(
    listing: FolderListing,
    config: DataConfig,
    store: HeaderStore | None,
    report: Callable[[int], None] | None,
) -> list[Header | BadImage]:
    """Header of every file of the listing, or why it is bad; ``report`` gets the number of files done."""

    def read_chunk(paths: list[str]) -> list[Header | BadImage]:
        return [_read_one(listing.root, path, config.max_megapixels, store) for path in paths]

    headers: list[Header | BadImage] = []
    chunks = [listing.paths[i : i + _CHUNK] for i in range(0, len(listing.paths), _CHUNK)]
    with ThreadPoolExecutor(config.num_workers or len(os.sched_getaffinity(0))) as pool:
        for read in pool.map(read_chunk, chunks):
            headers += read
            if report is not None:
                report(len(headers))
    return headers


def _read_one(root: Path, path: str, max_megapixels: float, store: HeaderStore | None) -> Header | BadImage:
    full = os.path.join(root, path)
    try:
        if store is not None and os.path.exists(full):
            status = os.stat(full)
            known = store.find(path, status)
            if known is not None:
                check_megapixels(known.width, known.height, max_megapixels)
                return known
        header = read_header(Path(full), max_megapixels)
    except BadImage as error:
        return error
    except OSError as error:
        return BadImage(error.strerror or str(error))
    if store is not None:
        store.add(path, status, header)
    return header
