"""Loads the native CPU library (kernels/csrc, built by CMake) through ctypes: raw pointers in, no libtorch.

Environment variables, read when the library is first wanted: SLCA_FAST_NO_NATIVE=1 keeps it out,
SLCA_FAST_NATIVE_LIBRARY names another file, SLCA_FAST_NATIVE_ISA holds it to one of ``ISA_NAMES``, as if the processor
had no more.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# torch first: it brings libgomp.so.1, and the loader then gives our library that same copy.
import torch

from .compiler import constant_to_the_compiler

ABI_VERSION = 3
ISA_NAMES = ("generic", "avx2", "avx512", "avx512bf16")
DEFAULT_LIBRARY = Path(__file__).parent / "_native" / "libslca_native.so"


class NativeError(RuntimeError):
    """An exported function came back with ``status``, which is not 0."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} failed with status {status}")
        self.status = status


_C_TYPES = {
    "p": ctypes.c_void_p,
    "q": ctypes.c_int64,
    "i": ctypes.c_int32,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or None and the reason why not."""
    if os.environ.get("SLCA_FAST_NO_NATIVE") == "1":
        return None, "SLCA_FAST_NO_NATIVE=1 keeps it out"
    path = Path(os.environ.get("SLCA_FAST_NATIVE_LIBRARY") or DEFAULT_LIBRARY)
    if not path.exists():
        return None, f"{path} does not exist: install with a C++ compiler at hand to build it"
    try:
        library = ctypes.CDLL(str(path))
        version = library.slca_abi_version()
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {error}"
    if version != ABI_VERSION:
        return None, f"{path} has interface version {version}, not {ABI_VERSION}: install again"
    if reason := _why_not_held(library):
        warnings.warn(f"the native library is out: {reason}", RuntimeWarning, stacklevel=2)
        return None, reason
    return library, None


@functools.cache
def held_isa() -> str | None:
    """The instruction set that SLCA_FAST_NATIVE_ISA holds the library to; None where it is not set."""
    return os.environ.get("SLCA_FAST_NATIVE_ISA") or None


def _why_not_held(library: ctypes.CDLL) -> str | None:
    """Lowers ``library`` to ``held_isa()``; the reason where that cannot be."""
    name = held_isa()
    if name is None:
        return None
    if name not in ISA_NAMES:
        return f"SLCA_FAST_NATIVE_ISA={name} is no instruction set: set it to one of {', '.join(ISA_NAMES)}"
    if (best := library.slca_set_isa(ISA_NAMES.index(name))) != ISA_NAMES.index(name):
        return f"SLCA_FAST_NATIVE_ISA={name} is beyond this processor: set it to {ISA_NAMES[best]} or less"
    return None


def available() -> bool:
    """Whether the native library is there and fits this package."""
    return _load()[0] is not None


@constant_to_the_compiler
def why_not(*names: str) -> str | None:
    """Why the native library, or one of its functions ``names``, cannot be used; None if it can."""
    library, reason = _load()
    if library is None:
        return reason
    missing = [name for name in names if not hasattr(library, name)]
    return f"the native library lacks {', '.join(missing)}: build it again" if missing else None


def isa() -> str | None:
    """The instruction set the library runs on this machine; None without the library."""
    library, _ = _load()
    return None if library is None else ISA_NAMES[library.slca_isa()]


def set_isa(name: str) -> str:
    """Runs on instruction set ``name``, or on the best below it that the machine has and ``held_isa`` allows.

    Returns the one in use.
    """
    library, reason = _load()
    assert library is not None, reason
    most = ISA_NAMES.index(held_isa() or ISA_NAMES[-1])
    return ISA_NAMES[library.slca_set_isa(min(ISA_NAMES.index(name), most))]


def function(name: str, signature: str) -> Callable[..., None]:
    """A callable for the exported C function ``name``, bound at its first call.

    ``signature`` has one letter an argument: p pointer (a tensor, whose ``data_ptr`` is passed, or None),
    q int64, i int32, f float, d double. The C function returns 0, anything else raises NativeError.
    """
    types = [_C_TYPES[letter] for letter in signature]
    bound: list[Any] = []

    def call(*args: Any) -> None:
        if not bound:
            library, reason = _load()
            assert library is not None, reason
            symbol = getattr(library, name)
            symbol.argtypes, symbol.restype = types, ctypes.c_int32
            bound.append(symbol)
        status = bound[0](*(arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args))
        if status != 0:
            raise NativeError(name, status)

    call.__name__ = name
    return call
