"""Per-class moments in plain torch: one padded, centred batched product per group of similar class sizes."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_GROUP_ELEMENTS = 1 << 26
"""Most elements of the padded features or of the scatters of one group, which bounds the temporary memory."""


def class_moments_reference(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, accumulate_dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and scatter of every class.

    count_c = #{i: y_i = c},  mean_c = (1/count_c) sum_{y_i = c} x_i,
    scatter_c = sum_{y_i = c} (x_i - mean_c)(x_i - mean_c)^T

    (SLCA, arXiv 2303.05118, section 3.3: scatter_c / (count_c - 1) is the unbiased covariance.) Rows are
    centred before anything is rounded to ``accumulate_dtype``, and the centring is corrected once for the
    rounding of the mean. Rows whose label is outside [0, num_classes) take no part.

    Args: features_ND [N, D] floating point, labels_N [N] integer in any order.
    Returns: count_C [C] int64, mean_CD [C, D] and scatter_CDD [C, D, D] of ``accumulate_dtype``; zeros for a
    class without rows, zero scatter for a class of one row.
    """
    dim = features_ND.shape[1]
    order_N = torch.argsort(labels_N, stable=True)
    class_C1 = torch.arange(num_classes + 1, device=labels_N.device, dtype=labels_N.dtype)
    offset_C1 = torch.searchsorted(labels_N[order_N], class_C1)
    count_C = offset_C1.diff()
    mean_CD = features_ND.new_zeros(num_classes, dim, dtype=accumulate_dtype)
    work_dtype = torch.promote_types(features_ND.dtype, accumulate_dtype)
    groups = _groups(count_C.tolist(), dim)
    # One group of all classes is the result itself: at 20 x 768 x 768 the copy costs as much as the product.
    whole = len(groups) == 1 and len(groups[0][0]) == num_classes
    scatter_CDD = features_ND.new_zeros(0 if whole else num_classes, dim, dim, dtype=accumulate_dtype)
    for members, longest in groups:
        class_G = torch.tensor(sorted(members), device=features_ND.device)
        row_GL = offset_C1[class_G, None] + torch.arange(longest, device=features_ND.device)
        valid_GL = row_GL < offset_C1[class_G + 1, None]
        rows_GLD = features_ND[order_N[row_GL.clamp(max=len(order_N) - 1)]].to(work_dtype)
        rows_GLD.mul_(valid_GL[..., None])
        count_G1 = count_C[class_G, None].to(work_dtype)
        mean_GD = rows_GLD.sum(1) / count_G1
        rows_GLD.sub_(mean_GD[:, None]).mul_(valid_GL[..., None])
        correction_GD = rows_GLD.sum(1) / count_G1
        rows_GLD.sub_(correction_GD[:, None]).mul_(valid_GL[..., None])
        rows_GLD = rows_GLD.to(accumulate_dtype)
        mean_CD[class_G] = (mean_GD + correction_GD).to(accumulate_dtype)
        if whole:
            scatter_CDD = torch.bmm(rows_GLD.mT, rows_GLD)
        else:
            scatter_CDD[class_G] = torch.bmm(rows_GLD.mT, rows_GLD)
    return count_C, mean_CD, scatter_CDD


def _groups(counts: list[int], dim: int) -> list[tuple[list[int], int]]:
    """Non-empty classes in groups whose sizes differ by less than 2x, with each group's largest size."""
    groups: list[tuple[list[int], int]] = []
    for index in sorted((c for c, n in enumerate(counts) if n > 0), key=lambda c: -counts[c]):
        if groups:
            members, longest = groups[-1]
            padded = (len(members) + 1) * dim * max(longest, dim)
            if 2 * counts[index] > longest and padded <= MAX_GROUP_ELEMENTS:
                members.append(index)
                continue
        groups.append(([index], counts[index]))
    return groups
