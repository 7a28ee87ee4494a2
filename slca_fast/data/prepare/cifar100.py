"""CIFAR-100 from its archive of Python pickles, without running any of their code."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from slca_fast.data.prepare.place import Job, Link, PrepareReport, Progress, class_folder, finish
from slca_fast.data.prepare.unpack import discard_unpacked, find_below, unpacked
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError

_BYTES_PER_IMAGE = 3 * 32 * 32


def prepare_cifar100(
    source: Path,
    root: Path,
    *,
    link: Link = "hard",
    check_counts: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """``source``: cifar-100-python.tar.gz or its folder. Writes PNGs named by their position in the archive."""
    del link
    folder = find_below(unpacked(source, root), "meta").parent
    names = [_text(name) for name in _field(folder / "meta", "fine_label_names", list)]
    jobs = []
    for split in ("train", "test"):
        labels = _field(folder / split, "fine_labels", list)
        pixels = _pixels(folder / split, _field(folder / split, "data", _Array))
        if len(labels) != len(pixels) or not all(isinstance(c, int) and 0 <= c < len(names) for c in labels):
            raise DataError(f"{folder / split}: labels and images do not fit together")
        for i, label in enumerate(labels):
            target = f"{split}/{class_folder(names[label])}/{i:05d}.png"
            jobs.append(Job(target, make=functools.partial(_save, pixels[i])))
    expected = DATASETS["cifar100"].counts if check_counts else None
    report = finish("cifar100", root, jobs, expected=expected, progress=progress)
    discard_unpacked(root)
    return report


def _save(pixels_CHW: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels_CHW.transpose(1, 2, 0)).save(path, format="PNG")


_Kind = TypeVar("_Kind")


class _Array:
    """Stands in for numpy.ndarray while unpickling: keeps its state, does nothing."""

    state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state


class _DType(_Array):
    """Stands in for numpy.dtype."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name


def _new_array(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


_STANDINS = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


class _InertUnpickler(pickle.Unpickler):
    """Knows four names, none of which is what it is called: no code of the file or of numpy can run."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _STANDINS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STANDINS[module, name]

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it asks for an outside object")


@functools.lru_cache(maxsize=3)
def _read(path: Path, _changed_ns: int) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            content = _InertUnpickler(file, encoding="bytes").load()
        return {_text(key): value for key, value in content.items()}
    except (
        pickle.UnpicklingError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
        MemoryError,
    ) as error:
        raise DataError(f"{path} is not a file of CIFAR-100: {error}") from None


def _field(path: Path, name: str, kind: type[_Kind]) -> _Kind:
    if not path.exists():
        raise DataError(f"no {path.name} in {path.parent}")
    value = _read(path, path.stat().st_mtime_ns).get(name)
    if not isinstance(value, kind):
        raise DataError(f"{path} has no {name}")
    return value


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pixels(path: Path, array: _Array) -> np.ndarray:
    """uint8 [N, 3, 32, 32] of the array's pickled state (version, shape, dtype, is Fortran order, bytes)."""
    if len(array.state) != 5:
        raise DataError(f"{path}: its data is no array")
    _, shape, dtype, fortran, content = array.state
    name = dtype.name if isinstance(dtype, _DType) else None
    good = name in (b"u1", "u1") and len(shape) == 2 and shape[1] == _BYTES_PER_IMAGE and not fortran
    if not good or not isinstance(content, bytes) or len(content) != shape[0] * _BYTES_PER_IMAGE:
        raise DataError(f"{path}: its data is not N x {_BYTES_PER_IMAGE} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 3, 32, 32)
