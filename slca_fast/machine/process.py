"""Settings of the process while a run goes on."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# glibc's names in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
_KEPT_PRODUCTS = "256"


@contextmanager
def steady_process(device: torch.device) -> Iterator[None]:
    """Spares a long loop what it would pay for again and again.

    The garbage collector looks at nothing that was there before; on the CPU, freed memory is kept for the next batch
    instead of given back to the system, which would clear it page by page (this lasts until the process ends).
    """
    if device.type == "cpu" and sys.platform == "linux":
        keep_freed_memory()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def keep_freed_memory() -> bool:
    """Whether the C library took the wish: glibc does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES - 1))


def keep_few_products() -> None:
    """Makes torch and oneDNN keep 256 of the products that they compiled, unless their variables are set.

    Else each keeps 1,024, of half a MB each; every task brings new shapes, so a long stream fills any number. Without
    effect on what has served before.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KEPT_PRODUCTS)
