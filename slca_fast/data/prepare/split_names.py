"""Which folders of a downloaded data set are splits: known names are understood, names like them are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slca_fast.data.kinds import has_image_name
from slca_fast.data.walk import is_passed_over, subfolders
from slca_fast.errors import DataError

_WORDS = {
    "train": ("train", "training", "trainset", "trainval"),
    "test": ("test", "tests", "testing", "testset"),
    "val": ("val", "valid", "validation", "validate", "valset", "dev", "eval", "evaluation", "holdout"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
_SAY_NOTHING = {"set", "sets", "data", "dataset", "images", "image", "imgs", "img", "split", "seg", "folder", "a", "b"}
_MOST_ENTERED = 10


@dataclass(frozen=True)
class Layout:
    """The folder that holds the classes: those of ``train`` and ``test``, or of both in one."""

    folder: Path
    train: str | None = None
    test: str | None = None
    left_out: tuple[str, ...] = ()
    """Folders and images beside them that are not used."""


def layout_of(source: Path) -> Layout:
    """How a downloaded folder is laid out; files beside the folders do not matter.

    Raises DataError for what could be read in more than one way.
    """
    folder, names = _entered(source)
    split_of = {name: _SPLIT_OF_WORD[name.lower()] for name in names if name.lower() in _SPLIT_OF_WORD}
    if "train" in split_of.values() and set(split_of.values()) != {"train"}:
        train = _only(folder, [name for name in names if split_of.get(name) == "train"])
        test = _only(folder, _with_classes(folder, split_of))
        left_out = [f"{name}/" for name in names if name not in (train, test)]
        left_out += [line for name in (train, test) for line in _stray(folder / name)]
        return Layout(folder, train, test, tuple(left_out))
    _refuse_hidden_splits(folder, names)
    if len(names) == 1:
        raise DataError(f"{folder} holds one class only, {names[0]}/: expected <class>/<image> of several classes")
    return Layout(folder, left_out=tuple(_stray(folder)))


def _entered(folder: Path) -> tuple[Path, list[str]]:
    """Archives often hold everything in a single folder, or in one in another; (folder, its folders)."""
    for _ in range(_MOST_ENTERED):
        names = subfolders(folder)
        if len(names) != 1 or not subfolders(folder / names[0]):
            return folder, names
        if _stray(folder):
            raise DataError(f"{folder} holds images beside its only folder {names[0]}/: give {folder / names[0]}")
        folder = folder / names[0]
    raise DataError(f"{folder} is a folder in a folder in a folder: give the one that holds the classes")


def _stray(folder: Path) -> list[str]:
    """A line that says how many images are in no class folder, if any."""
    names = (path.name for path in folder.iterdir() if path.is_file())
    count = sum(has_image_name(name) and not is_passed_over(name) for name in names)
    return [f"{count} image{'s' * (count > 1)} beside the classes of {folder.name}/"] if count else []


def _with_classes(folder: Path, split_of: dict[str, str]) -> list[str]:
    """The test folders that hold class folders, else the validation folders that do; DataError without any."""
    for split in ("test", "val"):
        found = [name for name, its_split in split_of.items() if its_split == split and subfolders(folder / name)]
        if found:
            return found
    other = next(name for name, split in split_of.items() if split != "train")
    raise DataError(f"{folder / other} holds no class folders: expected {folder / other}/<class>/<image>")


def _only(folder: Path, names: Sequence[str]) -> str:
    if len(names) > 1:
        raise DataError(f"{folder} holds both {names[0]}/ and {names[1]}/: leave one out")
    return names[0]


def _refuse_hidden_splits(folder: Path, names: list[str]) -> None:
    """DataError where a class would be a split in truth, or hold splits."""
    kinds = {name: _split_and_rest(name) for name in names}
    of_rest: dict[str, set[str]] = {}
    for split, rest in kinds.values():
        if split is not None:
            of_rest.setdefault(rest, set()).add(split)
    for name, (split, rest) in kinds.items():
        inside = subfolders(folder / name)
        inner = {_SPLIT_OF_WORD.get(child.lower()) for child in inside} - {None}
        if len(inner) > 1:
            raise DataError(
                f"{folder / name} holds splits ({', '.join(f'{n}/' for n in inside[:5])}) where images of one class "
                "should be: give a folder of train/<class>/<image> and test/<class>/<image>"
            )
        if split is not None and (len(of_rest[rest]) > 1 or (not rest and inside)):
            raise DataError(
                f"{folder / name} looks like a split and not like a class: "
                f"expected train/ with test/ or val/ beside it, found {', '.join(f'{n}/' for n in names[:8])}"
            )


def _split_and_rest(name: str) -> tuple[str | None, str]:
    """("train", "cars") of "cars_train", ("test", "") of "testSet2", (None, ...) of a name without such a word."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    splits = [word for word in words if word in _SPLIT_OF_WORD]
    rest = [word for word in words if word not in _SPLIT_OF_WORD and word not in _SAY_NOTHING]
    return (_SPLIT_OF_WORD[splits[0]] if splits else None), " ".join(rest)
