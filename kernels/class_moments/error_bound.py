"""How far rounding may take class moments from the equation in reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rounding import unit


def class_moments_error_bound(
    upstream: Sequence[Tensor],
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    accumulate_dtype: torch.dtype = torch.float64,
) -> tuple[list[Tensor], list[Tensor]]:
    """Bounds (of count, mean, scatter), float64; see ``OpSpec.error_bound``.

    For a class of n rows the first mean errs by n units of the mean |x|. What it leaves over is summed again, so the
    corrected mean errs by n units of the mean |x - mean| (and by n of what was left) and one rounding of itself. The
    scatter is a sum of n products of such centred rows; what is left of the shift s enters as n s s^T.
    """
    one = unit(accumulate_dtype)
    dim = features_ND.shape[1]
    mean_CD = features_ND.new_zeros(num_classes, dim, dtype=torch.float64)
    scatter_CDD = features_ND.new_zeros(num_classes, dim, dim, dtype=torch.float64)
    for c in range(num_classes):
        rows_nD = features_ND[labels_N == c].double()
        count = len(rows_nD)
        if count == 0:
            continue
        left_over_D = count * one * rows_nD.abs().mean(0)
        size_nD = (rows_nD - rows_nD.mean(0)).abs() + left_over_D
        shift_D = (count + 4) * one * size_nD.mean(0)
        mean_CD[c] = shift_D + 2 * one * rows_nD.mean(0).abs()
        scatter_CDD[c] = (count + 16) * one * size_nD.mT @ size_nD + count * shift_D[:, None] * shift_D
    return [features_ND.new_zeros(num_classes, dtype=torch.float64), mean_CD, scatter_CDD], []
