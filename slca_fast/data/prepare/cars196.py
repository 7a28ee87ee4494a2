"""Stanford Cars: MATLAB annotations; 8,144 images are for training and 8,041 for testing."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from slca_fast.data.prepare.place import Job, Link, PrepareReport, Progress, class_folder, finish, safe_relative
from slca_fast.data.prepare.unpack import discard_unpacked, find_below, is_archive, unpacked
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError


def prepare_cars196(
    source: Path,
    root: Path,
    *,
    link: Link = "hard",
    check_counts: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """``source``: a folder with cars_annos.mat and car_ims/, or with the devkit (cars_train_annos.mat,
    cars_test_annos_withlabels.mat, cars_meta.mat), cars_train/ and cars_test/; archives in it are unpacked.

    Class folders are "001 <name>" to "196 <name>", so that their order is that of the class numbers.
    """
    places = _places(source, root)
    table = _found(places, "cars_annos.mat")
    jobs = _from_devkit(places) if table is None else _from_one_table(table, places)
    expected = DATASETS["cars196"].counts if check_counts else None
    report = finish("cars196", root, jobs, link=link, expected=expected, progress=progress)
    discard_unpacked(root)
    return report


def _places(source: Path, root: Path) -> list[Path]:
    """Folders to look in: the source, and what its archives hold."""
    if not source.is_dir():
        return [unpacked(source, root)]
    archives = sorted(path for path in source.iterdir() if is_archive(path) and path.name.startswith("car"))
    return [source, *(unpacked(path, root) for path in archives)]


def _found(places: list[Path], name: str) -> Path | None:
    for place in places:
        try:
            return find_below(place, name)
        except DataError:
            continue
    return None


def _find(places: list[Path], name: str) -> Path:
    if (found := _found(places, name)) is None:
        raise DataError(f"no {name} in {places[0]}")
    return found


def _from_one_table(file: Path, places: list[Path]) -> list[Job]:
    content = _load(file)
    images = _find(places, "car_ims").parent
    names = [str(name) for name in content["class_names"]]
    return [
        _job(
            "test" if int(row.test) else "train",
            int(getattr(row, "class")),
            names,
            images / safe_relative(str(row.relative_im_path)),
        )
        for row in content["annotations"]
    ]


def _from_devkit(places: list[Path]) -> list[Job]:
    names = [str(name) for name in _load(_find(places, "cars_meta.mat"))["class_names"]]
    jobs = []
    for split, table in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        images = _find(places, f"cars_{split}")
        images = images / f"cars_{split}" if (images / f"cars_{split}").is_dir() else images
        for row in _load(_find(places, table))["annotations"]:
            if not hasattr(row, "class"):
                raise DataError(f"{table} has no classes: the devkit's test file without labels will not do")
            jobs.append(_job(split, int(getattr(row, "class")), names, images / safe_relative(str(row.fname))))
    return jobs


def _job(split: str, number: int, names: list[str], image: Path) -> Job:
    if not 1 <= number <= len(names):
        raise DataError(f"{image.name} is of class {number}, but there are {len(names)} class names")
    return Job(f"{split}/{number:03d} {class_folder(names[number - 1])}/{image.name}", image)


def _load(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(file, squeeze_me=True, struct_as_record=False)
    except (OSError, ValueError, TypeError, IndexError, NotImplementedError, MatReadError, zlib.error) as error:
        raise DataError(f"{file} is no MATLAB file that can be read ({error})") from None
    return {name: np.atleast_1d(value) for name, value in content.items() if not name.startswith("__")}
