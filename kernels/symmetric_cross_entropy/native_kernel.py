"""The native CPU kernel of symmetric cross-entropy (kernels/csrc/symmetric_cross_entropy.cpp)."""

from __future__ import annotations

import torch

from .. import native
from .reference import PROBABILITY_FLOOR, REVERSE_SCALE

SYMBOL = "slca_symmetric_cross_entropy"
_function = native.function(SYMBOL, "pqippppqqfffi")


def symmetric_cross_entropy_native(
    logits_BC: torch.Tensor,
    target_B: torch.Tensor,
    scale_B: torch.Tensor,
    ce_weight: float,
    rce_weight: float,
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
        scale_B.contiguous(), loss_B, gradient_BC if with_gradient else None,
        num_rows, num_classes, ce_weight, rce_weight * REVERSE_SCALE, PROBABILITY_FLOOR, torch.get_num_threads(),
    )  # fmt: skip
    return loss_B, gradient_BC
