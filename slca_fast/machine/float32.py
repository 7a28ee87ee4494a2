"""Who makes fp32 products in a run, set explicitly.

oneDNN on the CPU where that is exact (MKL runs at half speed on AMD processors); on CUDA no TF32, which torch allows
for convolutions unless told otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Largest error of a product, relative to its largest element, that float32 arithmetic explains (bf16's is near 4e-3).
FLOAT32_ERROR = 1e-5


@contextmanager
def fast_float32_products(device: torch.device) -> Iterator[None]:
    """Float32 products stay float32 products while it lasts: on the CPU through oneDNN, on CUDA without TF32.

    torch takes oneDNN only at the precision "medium", which allows to round the factors to bf16. Whether this processor
    really would is tried out first; where it does, nothing changes. The settings are the process's and are put back at
    the end; a process that has made them by torch's newer, per-backend way keeps its own.
    """
    if device.type == "cuda":
        with _no_tf32():
            yield
    else:
        with _precision("medium" if why_not() is None else None):
            yield


@contextmanager
def _no_tf32() -> Iterator[None]:
    if _by_backend():
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with _precision("highest"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _by_backend() -> bool:
    try:
        torch.get_float32_matmul_precision()
        return torch.backends.cudnn.allow_tf32 is None
    except RuntimeError:
        # torch refuses to mix its two ways of setting this.
        return True


@functools.cache
def why_not() -> str | None:
    """Why float32 products stay where torch sends them; None if oneDNN serves."""
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    if _by_backend():
        return "this process has set torch's float32 precision by backend"
    with _precision("medium"):
        errors = [_error(rows, inner, columns) for rows, inner, columns in ((64, 192, 576), (2048, 768, 192))]
    if max(errors) > FLOAT32_ERROR:
        return f"oneDNN would round the factors to bf16 (relative error {max(errors):.1e})"
    return None


@contextmanager
def _precision(name: str | None) -> Iterator[None]:
    if name is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _error(rows: int, inner: int, columns: int) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    truth = a.double() @ b.double()
    errors = [(a @ b).double() - truth, (b.T @ a.T).double().T - truth]
    return max((error.abs().max() / truth.abs().max()).item() for error in errors)


def float32_products_backend(device: torch.device) -> tuple[str, str]:
    """Who makes float32 products in a run, and why, for the report."""
    if device.type == "cuda":
        return "cuBLAS", "this process set its precision by backend" if _by_backend() else "without TF32"
    reason = why_not()
    return ("oneDNN", "tried: exact in float32 here") if reason is None else ("torch's default", reason)
