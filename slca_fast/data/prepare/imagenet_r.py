"""ImageNet-R: one folder of 200 classes and 30,000 images, split 80/20."""

from __future__ import annotations

from pathlib import Path

from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish, require_apart
from slca_fast.data.prepare.split import split_class_folders
from slca_fast.data.prepare.unpack import inner_folder, unpacked
from slca_fast.datasets import DATASETS


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
    folder = inner_folder(unpacked(source, root), "imagenet-r")
    require_apart(folder, root)
    jobs, options = split_class_folders(folder, seed, train_list, test_list)
    expected = DATASETS["imagenet-r"].counts if check_counts else None
    known = {"source": source, "link": link, "options": options}
    return finish("imagenet-r", root, jobs, expected=expected, progress=progress, **known)
