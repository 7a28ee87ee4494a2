"""Matrix products of fp32 on the CPU by oneDNN where that is exact: MKL runs at half speed on AMD processors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Largest error of a product, relative to its largest element, that float32 arithmetic explains (bf16's is near 4e-3).
FLOAT32_ERROR = 1e-5


@contextmanager
def fast_float32_products(device: torch.device) -> Iterator[None]:
    """Sends float32 matrix products on the CPU to oneDNN while it lasts, if they stay float32 products there.

    torch does so only at the precision "medium", which allows to round the factors to bf16. Whether this processor
    really would is tried out first; where it does, and on CUDA, nothing changes. The setting is the process's and is
    put back at the end.
    """
    with _precision("medium" if device.type == "cpu" and why_not() is None else None):
        yield


@functools.cache
def why_not() -> str | None:
    """Why float32 products stay where torch sends them; None if oneDNN serves."""
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    try:
        torch.get_float32_matmul_precision()
    except RuntimeError:
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
        return "cuBLAS", "TF32 stays as torch's settings have it"
    reason = why_not()
    return ("oneDNN", "tried: exact in float32 here") if reason is None else ("torch's default", reason)
