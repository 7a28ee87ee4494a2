"""How far rounding may take symmetric cross-entropy from the equation in reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rounding import TRUTH_BESIDE_1, accumulate_dtype, softmax_error, underflow, unit
from .reference import PROBABILITY_FLOOR, REVERSE_SCALE


def symmetric_cross_entropy_error_bound(
    upstream: Sequence[Tensor],
    logits_BC: Tensor,
    target_B: Tensor,
    ce_weight: float = 1.0,
    rce_weight: float = 1.0,
    reduction: str = "mean",
    *,
    row_weight_B: Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[list[Tensor], list[Tensor]]:
    """Bounds (of the loss, of the gradient by the logits), float64; see ``OpSpec.error_bound``.

    r_k is the relative error of p_k (``softmax_error``). A row's loss errs by a r_y + bA sum_k p_k r_k and C units
    of the sum, the gradient by the same at each term, and by a whole bA p_k where p_k is so close to the clamp that
    rounding decides on which side it is. The weights and the sum over B rows cost B units more.
    """
    one, last = unit(accumulate_dtype(logits_BC.dtype)), unit(logits_BC.dtype)
    weight_B = (target_B != ignore_index).double()
    if row_weight_B is not None:
        weight_B = weight_B * row_weight_B.double()
    used_B1 = (weight_B != 0)[:, None]
    scale_B = weight_B / weight_B.sum() if reduction == "mean" else weight_B
    label_B1 = torch.where(used_B1, target_B[:, None], 0).long()
    num_rows, num_classes = logits_BC.shape
    log_p_BC, error_BC = softmax_error(torch.where(used_B1, logits_BC.detach().double(), 0.0), 0.0, one)
    p_BC = log_p_BC.exp()
    other_BC = p_BC.scatter(1, label_B1, 0.0)
    is_kept_BC = other_BC >= PROBABILITY_FLOOR
    kept_BC = other_BC * is_kept_BC
    kept_B1 = kept_BC.sum(dim=1, keepdim=True)
    a, b = abs(ce_weight), abs(rce_weight) * REVERSE_SCALE
    row_units = (num_rows + 16) * one

    cross_entropy_B1, cross_entropy_error_B1 = -log_p_BC.gather(1, label_B1), error_BC.gather(1, label_B1)
    reverse_B1 = other_BC.clamp(min=PROBABILITY_FLOOR).sum(dim=1, keepdim=True) - PROBABILITY_FLOOR
    other_error_B1 = (other_BC * error_BC).sum(dim=1, keepdim=True)
    reverse_error_B1 = other_error_B1 + num_classes * one * reverse_B1
    size_B = (a * cross_entropy_B1 + b * reverse_B1)[:, 0]
    loss_B = (a * cross_entropy_error_B1 + b * reverse_error_B1)[:, 0] + (row_units + last) * size_B
    loss_B = scale_B.abs() * loss_B
    loss = (loss_B if reduction == "none" else loss_B.sum()) + underflow(logits_BC.dtype)
    if not upstream:
        return [loss], []

    is_near_BC = (other_BC - PROBABILITY_FLOOR).abs() <= 2 * error_BC * other_BC
    slope_error_B1 = reverse_error_B1 + (is_near_BC * other_BC).sum(dim=1, keepdim=True)
    term_BC = other_BC * (a + b * (is_kept_BC + kept_B1))
    gradient_BC = term_BC * error_BC + b * other_BC * (slope_error_B1 + is_near_BC)
    # p_y - 1 as minus the sum of the others
    p_y_B1, rest_B1 = p_BC.gather(1, label_B1), other_BC.sum(dim=1, keepdim=True)
    term_BC = term_BC.scatter(1, label_B1, a * rest_B1 + b * p_y_B1 * kept_B1)
    label_error_B1 = a * (other_error_B1 + num_classes * one * rest_B1)
    label_error_B1 += b * p_y_B1 * (slope_error_B1 + kept_B1 * error_BC.gather(1, label_B1))
    gradient_BC = gradient_BC.scatter(1, label_B1, label_error_B1) + (row_units + 3 * last) * term_BC
    gradient_BC += used_B1 * (a + b) * TRUTH_BESIDE_1
    factor_B = scale_B * upstream[0].double()
    return [loss], [factor_B.abs()[:, None] * gradient_BC + used_B1 * (1 + a + b) * underflow(logits_BC.dtype)]
