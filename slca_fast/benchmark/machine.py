"""What this machine can do at best, measured: the yardstick of achieved bandwidth and arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from .timing import interleaved


@functools.cache
def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read plus bytes written a second by ``Tensor.copy_`` between buffers larger than the caches."""
    num_bytes = (1 << 30) if device.type == "cuda" else (1 << 27)
    # Random numbers here and in every measured input: memory and arithmetic can be faster on zeros.
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    timings = interleaved({"copy": lambda: target.copy_(source)}, device, rounds=15, budget_s=1.5)
    return 2 * num_bytes / (min(timings.elapsed_ms["copy"]) * 1e-3)


@functools.cache
def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product in ``dtype``."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    timings = interleaved({"matmul": lambda: a @ b}, device, rounds=15, budget_s=1.5)
    return 2 * size**3 / (min(timings.elapsed_ms["matmul"]) * 1e-3)


def peak_memory_of(call: Callable[[], Any], device: torch.device) -> int | None:
    """Most bytes of device memory that one ``call`` held at a time beside what was held before it; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before
