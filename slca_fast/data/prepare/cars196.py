"""Stanford Cars: MATLAB annotations; 8,144 images are for training and 8,041 for testing."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish
from slca_fast.data.prepare.sound import Job, class_folders, safe_relative
from slca_fast.data.prepare.tables import read_bytes
from slca_fast.data.prepare.unpack import find_below, inner_folder, is_archive, unpacked
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError

_MOST_BYTES = 64 << 20


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
    table = _find(places, "cars_annos.mat", required=False)
    jobs = _from_devkit(places) if table is None else _from_one_table(table, places)
    expected = DATASETS["cars196"].counts if check_counts else None
    return finish("cars196", root, jobs, source=source, link=link, expected=expected, progress=progress)


def _places(source: Path, root: Path) -> list[Path]:
    """Folders to look in: the source, and what its archives hold."""
    if not source.is_dir():
        return [unpacked(source, root)]
    archives = sorted(path for path in source.iterdir() if is_archive(path) and path.name.startswith("car"))
    return [source, *(unpacked(path, root) for path in archives)]


def _find(places: list[Path], name: str, required: bool = True) -> Path | None:
    for place in places:
        try:
            return find_below(place, name)
        except DataError:
            continue
    if required:
        raise DataError(f"no {name} in {places[0]}")
    return None


def _from_one_table(file: Path, places: list[Path]) -> list[Job]:
    content = _load(file)
    images, names = _find(places, "car_ims").parent, _class_names(content, file)
    return [
        _job("test" if _number(row, "test", file) else "train", row, "relative_im_path", names, images, file)
        for row in _rows(content, file)
    ]


def _from_devkit(places: list[Path]) -> list[Job]:
    meta = _find(places, "cars_meta.mat")
    names = _class_names(_load(meta), meta)
    jobs = []
    for split, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        images = inner_folder(_find(places, f"cars_{split}"), f"cars_{split}")
        table = _find(places, name)
        for row in _rows(_load(table), table):
            if not hasattr(row, "class"):
                raise DataError(f"{table} has no classes: the devkit's test file without labels will not do")
            jobs.append(_job(split, row, "fname", names, images, table))
    return jobs


def _job(split: str, row: Any, path_field: str, names: list[str], images: Path, file: Path) -> Job:
    path = getattr(row, path_field, None)
    if not isinstance(path, str):
        raise DataError(f"{file}: an annotation has no {path_field}")
    image = images / safe_relative(path)
    number = _number(row, "class", file)
    if not 1 <= number <= len(names):
        raise DataError(f"{image.name} is of class {number}, but there are {len(names)} class names")
    return Job(f"{split}/{names[number - 1]}/{image.name}", image)


def _number(row: Any, name: str, file: Path) -> int:
    value = getattr(row, name, None)
    if not isinstance(value, (int, np.integer, np.floating)) or not np.isfinite(value) or value != int(value):
        raise DataError(f"{file}: {name} of an annotation is no whole number")
    return int(value)


def _rows(content: dict[str, np.ndarray], file: Path) -> np.ndarray:
    if "annotations" not in content:
        raise DataError(f"{file} has no annotations")
    return content["annotations"].ravel()


def _class_names(content: dict[str, np.ndarray], file: Path) -> list[str]:
    """Folder names in the order of the class numbers."""
    if "class_names" not in content:
        raise DataError(f"{file} has no class_names")
    names = content["class_names"].ravel().tolist()
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: class_names are not all text")
    return class_folders((f"{i:03d} {name.replace('/', '-').strip()}" for i, name in enumerate(names, 1)), file)


def _load(file: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    content = read_bytes(file, _MOST_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=False)
    except Exception as error:  # scipy's reader ends in errors of a dozen kinds on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{file} is no MATLAB file that can be read ({reason})") from None
    return {name: np.atleast_1d(value) for name, value in table.items() if not name.startswith("__")}
