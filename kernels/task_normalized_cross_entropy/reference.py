"""Task-normalized cross-entropy, the alignment loss of SLCA (arXiv 2303.05118, section 3.3), in plain torch.

With z_k the logits of task k, K tasks, n = mean_k (||z_k||_2 + 1e-7) and temperature tau,

    L = CE(u, y),  u = z / (n tau)                                      g = softmax(u) - onehot(y)
    dL/dz_j = (1 / (n tau)) * (g_j - (g . z / n) * z_j / (K ||z_k(j)||)),   the last term 0 where ||z_k|| = 0
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..row_loss.rows import Rows

NORM_FLOOR = 1e-7


def task_normalized_cross_entropy_reference(
    logits_BC: torch.Tensor, target_B: torch.Tensor, task_sizes: Sequence[int], temperature: float = 0.1
) -> torch.Tensor:
    """The loss as the paper writes it, in the dtype of ``logits_BC``, for autograd: the truth of tests."""
    norm_BK = torch.stack(
        [torch.linalg.vector_norm(z, dim=1) + NORM_FLOOR for z in logits_BC.split(list(task_sizes), dim=1)], dim=1
    )
    scaled_BC = logits_BC / norm_BK.mean(dim=1, keepdim=True) / temperature
    return torch.nn.functional.cross_entropy(scaled_BC, target_B.long())


def task_normalized_cross_entropy_rows(
    rows: Rows, task_sizes: Sequence[int], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its closed-form gradient in plain torch; computed in float32, in float64 for float64 logits."""
    logits_BC, target_B, scale_B, with_gradient = rows
    z_BC = logits_BC.to(scale_B.dtype)
    in_range_B = (target_B >= 0) & (target_B < logits_BC.shape[1])
    scale_B = torch.where(in_range_B, scale_B, math.nan)
    label_B1 = torch.where(in_range_B, target_B, 0)[:, None]
    norm_BK = torch.stack([torch.linalg.vector_norm(z, dim=1) for z in z_BC.split(list(task_sizes), dim=1)], dim=1)
    mean_norm_B1 = norm_BK.mean(dim=1, keepdim=True) + NORM_FLOOR
    log_p_BC = (z_BC / (mean_norm_B1 * temperature)).log_softmax(dim=1)
    loss_B = -scale_B * log_p_BC.gather(1, label_B1)[:, 0]
    if not with_gradient:
        return loss_B, logits_BC.new_empty(0)
    p_BC = log_p_BC.exp()
    other_B1 = p_BC.scatter(1, label_B1, 0.0).sum(dim=1, keepdim=True)
    g_BC = p_BC.scatter(1, label_B1, -other_B1)
    inverse_norm_BK = torch.where(norm_BK > 0, 1.0 / (len(task_sizes) * norm_BK), 0.0)
    sizes_K = torch.tensor(list(task_sizes), device=logits_BC.device)
    inverse_norm_BC = inverse_norm_BK.repeat_interleave(sizes_K, dim=1, output_size=logits_BC.shape[1])
    along_B1 = (g_BC * z_BC).sum(dim=1, keepdim=True) / mean_norm_B1
    grad_BC = (g_BC - along_B1 * z_BC * inverse_norm_BC) * (scale_B[:, None] / (mean_norm_B1 * temperature))
    return loss_B, grad_BC.to(logits_BC.dtype).contiguous()
