"""Any image folder: one that is split already, or one folder of classes to be split by a seed."""

from __future__ import annotations

from pathlib import Path

from slca_fast.data.prepare.place import Job, Link, PrepareReport, Progress, finish
from slca_fast.data.prepare.split import images_by_class, seeded_split
from slca_fast.data.prepare.unpack import discard_unpacked, unpacked
from slca_fast.errors import DataError


def prepare_image_folder(
    source: Path,
    root: Path,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    link: Link = "hard",
    check_counts: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """``source``: ``train`` with ``val`` or ``test`` below it, or class folders (then split, stratified)."""
    folder = _entered(unpacked(source, root))
    splits = [name for name in ("test", "val") if (folder / name).is_dir()]
    if (folder / "train").is_dir() and splits:
        found = {"train": images_by_class(folder / "train"), "test": images_by_class(folder / splits[0])}
        if set(found["train"]) != set(found["test"]):
            odd = sorted(set(found["train"]) ^ set(found["test"]))
            raise DataError(f"{folder}: class {odd[0]} (and {len(odd) - 1} more) is in one split only")
        places = {"train": folder / "train", "test": folder / splits[0]}
        jobs = [
            Job(f"{split}/{path}", places[split] / path)
            for split, images in found.items()
            for paths in images.values()
            for path in paths
        ]
        options: dict = {"split": f"train and {splits[0]} as found"}
    else:
        split = seeded_split(images_by_class(folder), test_fraction, seed)
        jobs = [Job(f"{name}/{path}", folder / path) for name, paths in split.items() for path in sorted(paths)]
        options = {"split": f"seed {seed}", "test_fraction": test_fraction}
    report = finish("folder", root, jobs, link=link, options=options, progress=progress)
    discard_unpacked(root)
    return report


def _entered(folder: Path) -> Path:
    """An archive often holds a single folder with everything in it."""
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    return children[0] if len(children) == 1 and children[0].is_dir() else folder
