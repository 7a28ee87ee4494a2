"""How far rounding may take task-normalized cross-entropy from the equation in reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rounding import TRUTH_BESIDE_1, accumulate_dtype, softmax_error, underflow, unit
from .reference import NORM_FLOOR


def task_normalized_cross_entropy_error_bound(
    upstream: Sequence[Tensor],
    logits_BC: Tensor,
    target_B: Tensor,
    task_sizes: Sequence[int],
    temperature: float = 0.1,
) -> tuple[list[Tensor], list[Tensor]]:
    """Bounds (of the loss, of the gradient by the logits), float64; see ``OpSpec.error_bound``.

    n, a mean of K roots of sums of squares, errs by K units and half the largest task; all u = z / (n tau) share that,
    so their differences err by as many units of themselves, and by a few of u where every u was rounded alone.
    ``softmax_error`` takes it from there. g . z / n is a sum of C terms; the mean is one of B rows.
    """
    one, last = unit(accumulate_dtype(logits_BC.dtype)), unit(logits_BC.dtype)
    num_rows, num_classes = logits_BC.shape
    z_BC, sizes_K = logits_BC.detach().double(), torch.tensor(list(task_sizes), device=logits_BC.device)
    norm_BK = torch.stack([z.norm(dim=1) for z in z_BC.split(list(task_sizes), dim=1)], dim=1)
    n_B1 = norm_BK.mean(dim=1, keepdim=True) + NORM_FLOOR
    norm_units = (max(task_sizes) / 2 + len(task_sizes) + 12) * one
    u_BC = z_BC / (n_B1 * temperature)
    below_BC = u_BC.amax(dim=1, keepdim=True) - u_BC
    largest_B1 = u_BC.abs().amax(dim=1, keepdim=True)
    log_p_BC, error_BC = softmax_error(u_BC, norm_units * below_BC + 4 * one * (u_BC.abs() + largest_B1), one)
    label_B1 = target_B.long()[:, None]
    row_units = (num_rows + 16) * one
    loss_B1 = error_BC.gather(1, label_B1) - (row_units + last) * log_p_BC.gather(1, label_B1)
    loss = loss_B1.mean() + underflow(logits_BC.dtype)
    if not upstream:
        return [loss], []

    other_BC = log_p_BC.exp().scatter(1, label_B1, 0.0)
    # g_y = p_y - 1 as minus the sum of the others
    rest_B1 = other_BC.sum(dim=1, keepdim=True)
    g_BC = other_BC.scatter(1, label_B1, rest_B1)
    g_error_BC = other_BC * error_BC
    label_error_B1 = g_error_BC.sum(dim=1, keepdim=True) + num_classes * one * rest_B1 + TRUTH_BESIDE_1
    g_error_BC = g_error_BC.scatter(1, label_B1, label_error_B1)
    along_B1 = (g_BC * z_BC.abs()).sum(dim=1, keepdim=True) / n_B1
    along_error_B1 = (g_error_BC * z_BC.abs()).sum(dim=1, keepdim=True) / n_B1
    along_error_B1 += (norm_units + num_classes * one) * along_B1
    share_BK = torch.where(norm_BK > 0, 1 / (len(task_sizes) * norm_BK), 0.0)
    share_BC = z_BC.abs() * share_BK.repeat_interleave(sizes_K, dim=1, output_size=num_classes)
    gradient_BC = g_error_BC + along_error_B1 * share_BC
    gradient_BC += (2 * norm_units + row_units + 3 * last) * (g_BC + along_B1 * share_BC)
    factor_B1 = upstream[0].double().abs() / (n_B1 * temperature * num_rows)
    return [loss], [factor_B1 * gradient_BC + (1 + factor_B1) * underflow(logits_BC.dtype)]
