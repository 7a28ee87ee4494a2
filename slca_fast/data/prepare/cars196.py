"""Stanford Cars: MATLAB annotations; 8,144 images are for training and 8,041 for testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slca_fast.data.prepare.matlab import read_matlab
from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish
from slca_fast.data.prepare.sound import Job, class_folders, safe_relative
from slca_fast.data.prepare.unpack import first_below, inner_folder, is_archive, unpacked
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
    return finish("cars196", root, jobs, source=source, link=link, expected=expected, progress=progress)


def _places(source: Path, root: Path) -> list[Path]:
    """Folders to look in: the source, and what its archives hold."""
    if not source.is_dir():
        return [unpacked(source, root)]
    archives = sorted(path for path in source.iterdir() if is_archive(path) and path.name.startswith("car"))
    return [source, *(unpacked(path, root) for path in archives)]


def _found(places: list[Path], name: str) -> Path | None:
    return next((found for place in places if (found := first_below(place, name)) is not None), None)


def _find(places: list[Path], name: str) -> Path:
    if (found := _found(places, name)) is None:
        raise DataError(f"no {name} in {places[0]}")
    return found


def _from_one_table(file: Path, places: list[Path]) -> list[Job]:
    content = read_matlab(file)
    images, names = _find(places, "car_ims").parent, _class_names(content, file)
    return [
        _job("test" if _number(row, "test", file) else "train", row, "relative_im_path", names, images, file)
        for row in _rows(content, file)
    ]


def _from_devkit(places: list[Path]) -> list[Job]:
    meta = _find(places, "cars_meta.mat")
    names = _class_names(read_matlab(meta), meta)
    jobs = []
    for split, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        images = inner_folder(_find(places, f"cars_{split}"), f"cars_{split}")
        table = _find(places, name)
        for row in _rows(read_matlab(table), table):
            if "class" not in row:
                raise DataError(f"{table} has no classes: the devkit's test file without labels will not do")
            jobs.append(_job(split, row, "fname", names, images, table))
    return jobs


def _job(split: str, row: dict, path_field: str, names: list[str], images: Path, file: Path) -> Job:
    path = row.get(path_field)
    if not isinstance(path, str):
        raise DataError(f"{file}: an annotation has no {path_field}")
    image = images / safe_relative(path)
    number = _number(row, "class", file)
    if not 1 <= number <= len(names):
        raise DataError(f"{image.name} is of class {number}, but there are {len(names)} class names")
    return Job(f"{split}/{names[number - 1]}/{image.name}", image)


def _number(row: dict, name: str, file: Path) -> int:
    if not isinstance(row.get(name), int):
        raise DataError(f"{file}: {name} of an annotation is no whole number")
    return row[name]


def _rows(content: dict[str, Any], file: Path) -> list[dict]:
    rows = _list(content, "annotations", file)
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: its annotations have no fields")
    return rows


def _class_names(content: dict[str, Any], file: Path) -> list[str]:
    """Folder names in the order of the class numbers."""
    names = _list(content, "class_names", file)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: class_names are not all text")
    return class_folders((f"{i:03d} {name.replace('/', '-').strip()}" for i, name in enumerate(names, 1)), file)


def _list(content: dict[str, Any], name: str, file: Path) -> list:
    if name not in content:
        raise DataError(f"{file} has no {name}")
    # A list of one is not a list to MATLAB.
    return content[name] if isinstance(content[name], list) else [content[name]]
