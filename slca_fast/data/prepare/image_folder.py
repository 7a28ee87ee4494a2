"""Any image folder: one that is split already, or one folder of classes to be split by a seed."""

from __future__ import annotations

from pathlib import Path

from slca_fast.data.folder import read_domain_names
from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish, require_apart
from slca_fast.data.prepare.sound import Job
from slca_fast.data.prepare.split import images_by_class, images_of_splits, seeded_split
from slca_fast.data.prepare.split_names import layout_of
from slca_fast.data.prepare.unpack import unpacked


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
    """``source``: ``train`` with ``test`` or ``val`` below it, or class folders (then split, stratified).

    A single folder around them is entered. What is not used is named in the report.
    """
    require_apart(source, root)
    layout = layout_of(unpacked(source, root))
    folder = layout.folder
    domains: tuple[str, ...] = ()
    if layout.train is not None and layout.test is not None:
        places = {"train": folder / layout.train, "test": folder / layout.test}
        jobs = [
            Job(f"{split}/{path}", places[split] / path)
            for split, images in images_of_splits(places).items()
            for paths in images.values()
            for path in paths
        ]
        options: dict = {"split": f"{layout.train} and {layout.test} as found"}
        domains = read_domain_names(folder)
    else:
        split = seeded_split(images_by_class(folder), test_fraction, seed)
        jobs = [Job(f"{name}/{path}", folder / path) for name, paths in split.items() for path in sorted(paths)]
        options = {"split": f"seed {seed}", "test_fraction": test_fraction}
    if layout.left_out:
        options["left_out"] = list(layout.left_out)
    return finish("folder", root, jobs, source=source, link=link, options=options, domains=domains, progress=progress)
