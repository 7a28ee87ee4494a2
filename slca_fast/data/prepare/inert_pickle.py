"""Reads a pickle of plain values and of NumPy arrays, without running any of its code or of NumPy's."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path

import numpy as np

from slca_fast.data.prepare.tables import read_bytes
from slca_fast.errors import DataError

_MOST_BYTES = 1 << 30
_MOST_STANDING_TUPLES = 1000
_TUPLES = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_REFUSED = ("DUP", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")


class Array:
    """Stands in for numpy.ndarray while unpickling: keeps its state, does nothing."""

    state: object = ()

    def __setstate__(self, state: object) -> None:
        self.state = state

    def rows(self, num_columns: int) -> np.ndarray | None:
        """uint8 [N, num_columns] of the state (version, shape, dtype, is Fortran order, bytes), or None."""
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            return None
        _, shape, dtype, fortran, content = self.state
        if not (isinstance(dtype, _DType) and dtype.name in (b"u1", "u1") and not fortran and type(content) is bytes):
            return None
        if not (isinstance(shape, tuple) and [type(side) for side in shape] == [int, int] and shape[1] == num_columns):
            return None
        if len(content) != shape[0] * num_columns:
            return None
        return np.frombuffer(content, dtype=np.uint8).reshape(-1, num_columns)


class _DType(Array):
    """Stands in for numpy.dtype."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name


def _new_array(*_: object) -> Array:
    return Array()


class _InertUnpickler(pickle.Unpickler):
    """Knows five names, none of which is what it is called."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._encodable = len(content)

    def find_class(self, module: str, name: str) -> object:
        stand_ins = {
            ("numpy.core.multiarray", "_reconstruct"): _new_array,
            ("numpy._core.multiarray", "_reconstruct"): _new_array,
            ("numpy", "ndarray"): Array,
            ("numpy", "dtype"): _DType,
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) not in stand_ins:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return stand_ins[module, name]

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it asks for an outside object")

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"encoding {encoding}")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise pickle.UnpicklingError("it encodes one text again and again")
        return text.encode("latin1")


def read_pickled_dict(path: Path) -> dict[str, object]:
    """The dictionary in ``path``; arrays are ``Array``. Raises DataError for anything that no pickler writes.

    Memory is bounded by a small multiple of the file's size.
    """
    content = read_bytes(path, _MOST_BYTES)
    try:
        _require_plain(content)
        values = _InertUnpickler(content).load()
    except Exception as error:  # damaged pickles end in errors of any kind
        raise DataError(f"{path} is not a pickle of plain values: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is not a pickled dictionary")
    return {text_of(key, path): value for key, value in values.items()}


def text_of(value: object, path: Path) -> str:
    """A text as Python 2 or 3 pickles it; DataError for anything else."""
    try:
        if isinstance(value, bytes):
            return value.decode()
    except UnicodeDecodeError:
        pass
    if not isinstance(value, str):
        raise DataError(f"{path}: a name in it is no text in UTF-8")
    return value


def _require_plain(content: bytes) -> None:
    """UnpicklingError for opcodes that only a hand-made file has: huge memo numbers, tuples nested without end."""
    standing, before = 0, ""
    stored: set[int] = set()
    stored_tuples: set[int] = set()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
        name = opcode.name
        if name in _REFUSED:
            raise pickle.UnpicklingError(f"it has the opcode {name}")
        if name in _PUTS:
            index = len(stored) if argument is None else argument
            if index > number:
                raise pickle.UnpicklingError(f"its memo number {index} is beyond what it has stored")
            stored.add(index)
            if before in _TUPLES:
                stored_tuples.add(index)
            continue
        if name in _GETS and argument in stored_tuples:
            raise pickle.UnpicklingError("it uses one tuple twice")
        standing += (name in _TUPLES) - (name == "REDUCE" and before in _TUPLES)
        if standing > _MOST_STANDING_TUPLES:
            raise pickle.UnpicklingError("it has too many tuples")
        before = name
