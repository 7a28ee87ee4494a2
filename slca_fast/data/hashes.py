"""The contents of a data set on request: one sha256 per file, and what differs from it later.

A flipped bit often still decodes; only this finds it. The file is JSON, {relative path: sha256}.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slca_fast.data.index import ImageDataset, Problem
from slca_fast.errors import DataError

Progress = Callable[[int, int], None]


def write_hashes(dataset: ImageDataset, file: Path, progress: Progress | None = None) -> None:
    """Hash every file of both splits into ``file``; DataError for a file that cannot be read."""
    hashes, unreadable = _hash_all(dataset, progress)
    if unreadable:
        raise DataError("\n".join(str(problem) for problem in unreadable))
    file.write_text(json.dumps(hashes, indent=0, sort_keys=True))


def check_hashes(dataset: ImageDataset, file: Path, progress: Progress | None = None) -> list[Problem]:
    """Files that changed, came or went since ``write_hashes``; DataError when ``file`` is not from there."""
    try:
        expected = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is no list of hashes ({error})") from None
    if not isinstance(expected, dict):
        raise DataError(f"{file} is no list of hashes (expected a JSON object of path: sha256)")
    hashes, problems = _hash_all(dataset, progress)
    problems += [
        Problem(path, "content differs from its sha256" if path in expected else "is not in the list of hashes")
        for path, digest in hashes.items()
        if expected.get(path) != digest
    ]
    unread = {problem.path for problem in problems}
    problems += [Problem(path, "is missing") for path in expected if path not in hashes and path not in unread]
    return problems


def _hash_all(dataset: ImageDataset, progress: Progress | None) -> tuple[dict[str, str], list[Problem]]:
    root, paths = dataset.train.root, [*dataset.train.paths, *dataset.test.paths]
    hashes, problems = {}, []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done, (path, result) in enumerate(zip(paths, pool.map(lambda p: _sha256(root / p), paths)), 1):
            if isinstance(result, OSError):
                problems.append(Problem(path, result.strerror or str(result)))
            else:
                hashes[path] = result
            if progress is not None:
                progress(done, len(paths))
    return hashes, problems


def _sha256(path: Path) -> str | OSError:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        return error
    return digest.hexdigest()
