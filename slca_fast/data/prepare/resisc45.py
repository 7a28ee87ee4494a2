"""NWPU-RESISC45: one folder of 45 classes of 700 images, split 80/20."""

from __future__ import annotations

from pathlib import Path

from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish, require_apart
from slca_fast.data.prepare.split import split_class_folders
from slca_fast.data.prepare.unpack import inner_folder, unpacked
from slca_fast.datasets import DATASETS


def prepare_resisc45(
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
    """``source``: NWPU-RESISC45.zip or the folder of classes, which the published .rar has to be unpacked into first.

    Split by both list files, else by ``seed`` within each class: there is no official split. The lists of arXiv
    1911.06721 (resisc45-{train,val,test}.txt) can be used, train and val as one list, against test. Which split was
    used is recorded in prepared.json.
    """
    folder = inner_folder(unpacked(source, root), "NWPU-RESISC45")
    require_apart(folder, root)
    jobs, options = split_class_folders(folder, seed, train_list, test_list)
    expected = DATASETS["resisc45"].counts if check_counts else None
    known = {"source": source, "link": link, "options": options}
    return finish("resisc45", root, jobs, expected=expected, progress=progress, **known)
