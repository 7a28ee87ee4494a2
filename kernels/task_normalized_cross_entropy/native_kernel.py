"""The native CPU kernel of task-normalized cross-entropy (kernels/csrc/task_normalized_cross_entropy.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import native
from .reference import NORM_FLOOR

SYMBOL = "slca_task_normalized_cross_entropy"
_function = native.function(SYMBOL, "pqipppppqqqddi")


def task_normalized_cross_entropy_native(
    logits_BC: torch.Tensor,
    target_B: torch.Tensor,
    scale_B: torch.Tensor,
    task_sizes: Sequence[int],
    temperature: float,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``scale_i * L_i`` [B] float32 and its gradient, float32 or bfloat16 as the logits (no elements unless asked).

    Raises NativeError (status 2) when a label is out of range.
    """
    assert scale_B.dtype == torch.float32, scale_B.dtype
    num_rows, num_classes = logits_BC.shape
    if logits_BC.stride(1) != 1:
        logits_BC = logits_BC.contiguous()
    loss_B = torch.empty_like(scale_B)
    gradient_BC = torch.empty((num_rows, num_classes) if with_gradient else (0,), dtype=logits_BC.dtype)
    _function(
        logits_BC, logits_BC.stride(0), logits_BC.dtype == torch.bfloat16, target_B.contiguous(),
        scale_B.contiguous(), torch.tensor(task_sizes), loss_B, gradient_BC if with_gradient else None,
        num_rows, num_classes, len(task_sizes), temperature, NORM_FLOOR, torch.get_num_threads(),
    )  # fmt: skip
    return loss_B, gradient_BC
