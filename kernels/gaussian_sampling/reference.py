"""Cholesky factors with a ladder of ridge, and Gaussian samples, in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .packing import identity_ridge, is_packed, split_lower
from .philox import philox_normal_reference

FIRST_RUNG = 1e-8
NUM_RUNGS = 9
"""Rungs of extra ridge: 1e-8, 1e-7, .., 1 times the mean diagonal of the matrix."""
MAX_UNPACKED_ELEMENTS = 1 << 26
"""Most elements of factors that are unpacked at a time while sampling."""


def cholesky_factor_reference(covariance_CDD: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """L L^T = Sigma_c + (ridge + added_c) I for every class c, in one batched factorisation.

    added_c is 0 where the plain matrix factorises, else the first rung of 1e-8, 1e-7, .., 1 times its mean
    diagonal (1 where that is not positive) that makes it factorise. One synchronisation for the batch when
    all succeed; the ladder itself runs without any.

    Args: covariance_CDD [C, D, D] symmetric; the lower triangle is read.
    Returns: factor_CDD [C, D, D] lower triangular, added_ridge_C [C]; NaN factors where no rung helped.
    """
    matrix_CDD = identity_ridge(covariance_CDD, ridge)
    factor_CDD, info_C = torch.linalg.cholesky_ex(matrix_CDD, check_errors=False)
    added_C = matrix_CDD.new_zeros(matrix_CDD.shape[0])
    failed_F = _failed(factor_CDD, info_C).nonzero()[:, 0]
    if len(failed_F) == 0:
        return _lower(factor_CDD), added_C
    matrix_FDD = matrix_CDD[failed_F]
    scale_F = matrix_FDD.diagonal(dim1=-2, dim2=-1).mean(-1)
    scale_F = torch.where(scale_F > 0, scale_F, torch.ones_like(scale_F))
    factor_FDD = torch.full_like(matrix_FDD, torch.nan)
    chosen_F = torch.full_like(scale_F, torch.nan)
    for rung in range(NUM_RUNGS):
        extra_F = scale_F * FIRST_RUNG * 10.0**rung
        trial_FDD, info_F = torch.linalg.cholesky_ex(identity_ridge(matrix_FDD, extra_F), check_errors=False)
        take_F = chosen_F.isnan() & ~_failed(trial_FDD, info_F)
        factor_FDD = torch.where(take_F[:, None, None], trial_FDD, factor_FDD)
        chosen_F = torch.where(take_F, extra_F, chosen_F)
    factor_CDD[failed_F] = factor_FDD
    added_C[failed_F] = chosen_F
    return _lower(factor_CDD), added_C


def _lower(factor_CDD: Tensor) -> Tensor:
    """Zeros above the diagonal, columns contiguous (as LAPACK writes them) whatever the backend returned."""
    return factor_CDD.mT.contiguous().mT.tril_()


def _failed(factor_CDD: Tensor, info_C: Tensor) -> Tensor:
    """LAPACK and cuSOLVER let some NaN inputs pass with info 0; a NaN then reaches the diagonal."""
    return (info_C != 0) | ~factor_CDD.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)


def sample_gaussians_reference(
    mean_CD: Tensor,
    factor: Tensor,
    class_id_C: Tensor,
    num_per_class: int,
    seed: Tensor,
    sample_offset: int = 0,
    normals: Callable[..., Tensor] = philox_normal_reference,
) -> Tensor:
    """x_ci = mean_c + L_c z_ci with z_ci the counter-based normals of (seed, class_id_c, sample_offset + i).

    Args: mean_CD [C, D], factor [C, D, D] lower triangular or packed (``packing.pack_lower``), both of one
    dtype, class_id_C [C] int64, seed int64 [1]. Returns: [C, num_per_class, D] of the factor's dtype.
    """
    dim = mean_CD.shape[1]
    packed = is_packed(factor, dim)
    features_CSD = factor.new_empty(len(factor), num_per_class, dim)
    step = max(1, MAX_UNPACKED_ELEMENTS // max(1, dim * max(dim, num_per_class)))
    for start in range(0, len(factor), step):
        rows = slice(start, start + step)
        normal_GSD = normals(seed, class_id_C[rows], num_per_class, dim, 0, sample_offset, factor.dtype)
        correlate(mean_CD[rows], factor[rows], packed, normal_GSD, features_CSD[rows])
    return features_CSD


def correlate(mean_GD: Tensor, factor: Tensor, packed: bool, normal_GSD: Tensor, out_GSD: Tensor) -> None:
    """out = mean + normal L^T; a packed factor needs 3/4 of the arithmetic, as its upper corner is never touched."""
    if not packed:
        torch.baddbmm(mean_GD[:, None], normal_GSD, factor.tril().mT, out=out_GSD)
        return
    half = factor.shape[-1]
    left_GDP, rest_GHH = split_lower(factor)
    torch.baddbmm(mean_GD[:, None], normal_GSD[..., :half], left_GDP.mT, out=out_GSD)
    out_GSD[..., half:] += torch.bmm(normal_GSD[..., half:], rest_GHH)


def sample_low_rank_reference(
    mean_CD: Tensor,
    rows_CKD: Tensor,
    noise_scale: float,
    class_id_C: Tensor,
    num_per_class: int,
    seed: Tensor,
    sample_offset: int = 0,
    normals: Callable[..., Tensor] = philox_normal_reference,
) -> Tensor:
    """x_ci = mean_c + R_c^T z_ci + noise_scale e_ci: covariance R_c^T R_c + noise_scale^2 I, exactly.

    Args: mean_CD [C, D], rows_CKD [C, K, D] (padded by zero rows), class_id_C [C] int64, seed int64 [1].
    z and e are streams 0 and 1 of (seed, class_id_c, sample_offset + i). Returns: [C, num_per_class, D].
    """
    _, rank, dim = rows_CKD.shape
    normal_CSK = normals(seed, class_id_C, num_per_class, rank, 0, sample_offset, rows_CKD.dtype)
    features_CSD = torch.baddbmm(mean_CD[:, None], normal_CSK, rows_CKD)
    if noise_scale:
        noise_CSD = normals(seed, class_id_C, num_per_class, dim, 1, sample_offset, rows_CKD.dtype)
        features_CSD.add_(noise_CSD, alpha=noise_scale)
    return features_CSD
