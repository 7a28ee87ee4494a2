"""Symmetric cross-entropy, the stage-1 loss of SLCA++ (arXiv 2408.08295, section 4.2), in plain torch.

With p = softmax(z), y the label, a and b the weights and A = -ln 1e-4,

    L = a * (-log p_y)  +  b * sum_k -clamp(p_k, 1e-7, 1) * log(clamp([k = y], 1e-4, 1))
      = a * (lse(z) - z_y)  +  b A * (S + 1e-7 * #{k != y : p_k < 1e-7}),    S = sum over k != y, p_k >= 1e-7 of p_k

    dL/dz_j = a * (p_j - [j = y])  +  b A * p_j * ([j != y][p_j >= 1e-7] - S)
"""

from __future__ import annotations

import math

import torch

from ..row_loss.rows import Rows

PROBABILITY_FLOOR = 1e-7
LABEL_FLOOR = 1e-4
REVERSE_SCALE = -math.log(LABEL_FLOOR)


def symmetric_cross_entropy_reference(
    logits_BC: torch.Tensor,
    target_B: torch.Tensor,
    ce_weight: float = 1.0,
    rce_weight: float = 1.0,
    reduction: str = "mean",
    *,
    row_weight_B: torch.Tensor | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:
    """The loss as the paper writes it, in the dtype of ``logits_BC``, for autograd: the truth of tests."""
    weight_B = (target_B != ignore_index).to(logits_BC.dtype)
    if row_weight_B is not None:
        weight_B = weight_B * row_weight_B.to(weight_B.dtype)
    used_B = weight_B != 0
    logits_BC = torch.where(used_B[:, None], logits_BC, 0.0)
    label_B = torch.where(used_B, target_B, 0).long()
    cross_entropy_B = torch.nn.functional.cross_entropy(logits_BC, label_B, reduction="none")
    probability_BC = logits_BC.softmax(dim=1).clamp(PROBABILITY_FLOOR, 1.0)
    one_hot_BC = torch.nn.functional.one_hot(label_B, logits_BC.shape[1]).to(logits_BC.dtype)
    reverse_B = -(probability_BC * one_hot_BC.clamp(LABEL_FLOOR, 1.0).log()).sum(dim=1)
    loss_B = weight_B * (ce_weight * cross_entropy_B + rce_weight * reverse_B)
    if reduction == "none":
        return loss_B
    return loss_B.sum() / weight_B.sum() if reduction == "mean" else loss_B.sum()


def symmetric_cross_entropy_rows(rows: Rows, ce_weight: float, rce_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its closed-form gradient in plain torch; computed in float32, in float64 for float64 logits.

    Rows of scale 0 are not looked at. Labels of other rows must be in range.
    """
    logits_BC, target_B, scale_B, with_gradient = rows
    used_B1 = (scale_B != 0)[:, None]
    z_BC = torch.where(used_B1, logits_BC.to(scale_B.dtype), 0.0)
    in_range_B = (target_B >= 0) & (target_B < logits_BC.shape[1])
    scale_B = torch.where(in_range_B | ~used_B1[:, 0], scale_B, math.nan)
    label_B1 = torch.where(in_range_B & used_B1[:, 0], target_B, 0)[:, None]
    log_p_BC = z_BC.log_softmax(dim=1)
    p_BC = log_p_BC.exp()
    other_BC = p_BC.scatter(1, label_B1, 0.0)
    kept_BC = torch.where(other_BC >= PROBABILITY_FLOOR, other_BC, 0.0)
    num_floored_B = (other_BC < PROBABILITY_FLOOR).sum(dim=1, dtype=p_BC.dtype) - 1
    reverse_B = kept_BC.sum(dim=1) + PROBABILITY_FLOOR * num_floored_B
    reverse_weight = rce_weight * REVERSE_SCALE
    loss_B = scale_B * (reverse_weight * reverse_B - ce_weight * log_p_BC.gather(1, label_B1)[:, 0])
    if not with_gradient:
        return loss_B, logits_BC.new_empty(0)
    grad_BC = p_BC * (ce_weight - reverse_weight * kept_BC.sum(dim=1, keepdim=True)) + reverse_weight * kept_BC
    # p_y - 1 as minus the sum of the others: no cancellation when p_y is close to 1.
    label_grad_B1 = grad_BC.gather(1, label_B1) - ce_weight * (p_BC.gather(1, label_B1) + other_BC.sum(1, keepdim=True))
    grad_BC = grad_BC.scatter(1, label_B1, label_grad_B1)
    grad_BC = torch.where(used_B1, grad_BC, 0.0) * scale_B[:, None]
    return loss_B, grad_BC.to(logits_BC.dtype).contiguous()
