"""The native CPU kernel of symmetric cross-entropy (kernels/csrc/symmetric_cross_entropy.cpp)."""

from __future__ import annotations

import torch

from .. import native
from ..row_loss.rows import Rows
from .reference import PROBABILITY_FLOOR, REVERSE_SCALE

SYMBOL = "slca_symmetric_cross_entropy"
_function = native.function(SYMBOL, "pqippppqqfffi")


def symmetric_cross_entropy_native(
    rows: Rows, ce_weight: float, rce_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of float32 or bfloat16 logits; NativeError (status 2) when a label is out of range."""
    logits_BC, target_B, scale_B, with_gradient = rows.dense()
    assert scale_B.dtype == torch.float32, scale_B.dtype
    num_rows, num_classes = logits_BC.shape
    loss_B, gradient_BC = rows.memory()
    _function(
        logits_BC, logits_BC.stride(0), logits_BC.dtype == torch.bfloat16, target_B,
        scale_B, loss_B, gradient_BC if with_gradient else None,
        num_rows, num_classes, ce_weight, rce_weight * REVERSE_SCALE, PROBABILITY_FLOOR, torch.get_num_threads(),
    )  # fmt: skip
    return loss_B, gradient_BC
