"""Whether Triton kernels can run here, and why not; importing this does not import triton."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from .compiler import constant_to_the_compiler


@constant_to_the_compiler
def interpreted() -> bool:
    """Whether Triton runs in its interpreter (set before triton is imported): CPU tensors work."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True", "on", "yes", "y")


@constant_to_the_compiler
def why_not(device_type: str) -> str | None:
    """Why Triton kernels cannot run on tensors of ``device_type``; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cpu" and not interpreted():
        return "on the CPU Triton runs in its interpreter only: set TRITON_INTERPRET=1"
    return None


def wrap(kernel: Any) -> Any:
    """``kernel`` as the compiler can see it (torch.library.wrap_triton); itself in the interpreter."""
    return kernel if interpreted() else torch.library.wrap_triton(kernel)
