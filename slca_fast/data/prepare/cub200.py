"""CUB-200-2011: images.txt and train_test_split.txt say which image is which."""

from __future__ import annotations

from pathlib import Path

from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish
from slca_fast.data.prepare.sound import Job, safe_relative
from slca_fast.data.prepare.tables import read_lines
from slca_fast.data.prepare.unpack import find_below, unpacked
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError


def prepare_cub200(
    source: Path,
    root: Path,
    *,
    link: Link = "hard",
    check_counts: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """``source``: CUB_200_2011.tgz or its folder."""
    folder = find_below(unpacked(source, root), "images.txt").parent
    paths, is_train = _table(folder / "images.txt"), _table(folder / "train_test_split.txt")
    if set(paths) != set(is_train) or not set(is_train.values()) <= {"0", "1"}:
        raise DataError(f"{folder}: images.txt and train_test_split.txt do not list the same images")
    jobs = []
    for image, path in paths.items():
        path = safe_relative(path)
        split = "train" if is_train[image] == "1" else "test"
        jobs.append(Job(f"{split}/{path}", folder / "images" / path))
    expected = DATASETS["cub200"].counts if check_counts else None
    return finish("cub200", root, jobs, source=source, link=link, expected=expected, progress=progress)


def _table(file: Path) -> dict[str, str]:
    rows = [line.split() for _, line in read_lines(file)]
    if any(len(row) != 2 for row in rows):
        raise DataError(f"{file}: expected two words per line")
    table = {key: value for key, value in rows}
    if len(table) < len(rows):
        raise DataError(f"{file} lists an image twice")
    return table
