"""ImageNet-R: one folder of 200 classes and 30,000 images, split 80/20."""

from __future__ import annotations

import hashlib
from pathlib import Path

from slca_fast.data.prepare.place import Job, Link, PrepareReport, Progress, finish
from slca_fast.data.prepare.split import images_by_class, listed_split, seeded_split
from slca_fast.data.prepare.unpack import discard_unpacked, unpacked
from slca_fast.errors import UserError

PUBLISHED = (24_000, 6_000, 200)


def prepare_imagenet_r(
    source: Path,
    root: Path,
    *,
    seed: int = 0,
    train_list: str | Path | None = None,
    test_list: str | Path | None = None,
    link: Link = "hard",
    check_counts: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """``source``: imagenet-r.tar or its folder. Split by both list files, else by ``seed`` within each class.

    The published splits are fixed lists and not interchangeable; which one was used is recorded in prepared.json.
    """
    if (train_list is None) != (test_list is None):
        raise UserError("give both --train_list and --test_list, or neither for a seeded split")
    folder = unpacked(source, root)
    if not (folder / "n01443537").is_dir() and (folder / "imagenet-r").is_dir():
        folder = folder / "imagenet-r"
    images = images_by_class(folder)
    if train_list is None:
        split, options = seeded_split(images, 0.2, seed), {"split": f"seed {seed}"}
    else:
        lists = {"train": Path(train_list), "test": Path(test_list)}
        split = listed_split(images, lists)
        options = {"split": {name: hashlib.sha256(f.read_bytes()).hexdigest() for name, f in lists.items()}}
    jobs = [Job(f"{name}/{path}", folder / path) for name, paths in split.items() for path in sorted(paths)]
    expected = PUBLISHED if check_counts else None
    report = finish("imagenet-r", root, jobs, link=link, expected=expected, options=options, progress=progress)
    discard_unpacked(root)
    return report
