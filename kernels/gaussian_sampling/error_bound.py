"""How far rounding may take Cholesky factors and Gaussian samples from the equations in reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rounding import unit
from .packing import is_packed, unpack_lower
from .philox import philox_normal_reference
from .reference import cholesky_factor_reference


def cholesky_factor_error_bound(
    upstream: Sequence[Tensor], covariance_CDD: Tensor, ridge: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Bounds (of the factor, of the added ridge), float64; see ``OpSpec.error_bound``.

    A computed factor is the exact one of a matrix that is off by D + 1 units of |L| |L^T| (Higham 2002, theorem 10.3);
    to first order the factor moves by L low(L^-1 dA L^-T), ``low`` the lower triangle with half the diagonal.
    """
    one = (covariance_CDD.shape[-1] + 8) * unit(covariance_CDD.dtype)
    factor_CDD, added_C = cholesky_factor_reference(covariance_CDD.double(), ridge)
    size_CDD = factor_CDD.abs()
    identity_CDD = torch.eye(covariance_CDD.shape[-1]).to(factor_CDD).expand_as(factor_CDD)
    inverse_CDD = torch.linalg.solve_triangular(factor_CDD, identity_CDD, upper=False).abs()
    moved_CDD = inverse_CDD @ (one * size_CDD @ size_CDD.mT) @ inverse_CDD.mT
    low_CDD = moved_CDD.tril() - moved_CDD.diagonal(dim1=-2, dim2=-1).diag_embed() / 2
    return [size_CDD @ low_CDD, one * added_C], []


def sample_gaussians_error_bound(
    upstream: Sequence[Tensor], mean_CD: Tensor, factor: Tensor, num_per_class: int, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Bound (of the samples), float64; see ``OpSpec.error_bound``: |L| times the error of z, a sum of D + 1 terms."""
    dim = mean_CD.shape[1]
    lower_CDD = (unpack_lower(factor) if is_packed(factor, dim) else factor.tril()).double().abs()
    size_CSD, error_CSD = _normals(mean_CD, dim, num_per_class, seed, 0)
    units = (dim + 8) * unit(factor.dtype)
    total_CSD = mean_CD.double().abs()[:, None] + size_CSD @ lower_CDD.mT
    return [error_CSD @ lower_CDD.mT + units * total_CSD], []


def sample_low_rank_error_bound(
    upstream: Sequence[Tensor], mean_CD: Tensor, rows_CKD: Tensor, noise_scale: float, num_per_class: int, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Bound (of the samples), float64; see ``OpSpec.error_bound``: |R|^T times the error of z, a sum of K + 2 terms."""
    _, rank, dim = rows_CKD.shape
    size_CSK, error_CSK = _normals(mean_CD, rank, num_per_class, seed, 0)
    noise_CSD, noise_error_CSD = _normals(mean_CD, dim, num_per_class, seed, 1)
    rows_CKD, units = rows_CKD.double().abs(), (rank + 8) * unit(rows_CKD.dtype)
    total_CSD = mean_CD.double().abs()[:, None] + size_CSK @ rows_CKD + noise_scale * noise_CSD
    return [error_CSK @ rows_CKD + noise_scale * noise_error_CSD + units * total_CSD], []


def _normals(mean_CD: Tensor, num_dims: int, num_per_class: int, seed: int, stream: int) -> tuple[Tensor, Tensor]:
    """|z| and the error of z [C, S, num_dims].

    z = r cos theta with r^2 = -2 ln u: sines and roots are good to a few units; so is the logarithm, or, where an
    approximate one is near its zero, to a few units of 1, which moves z by as much over r^2.
    """
    seed_1 = torch.tensor([seed], dtype=torch.int64, device=mean_CD.device)
    class_id_C = torch.arange(len(mean_CD), device=mean_CD.device)
    whole_pairs = num_dims + num_dims % 2
    z = philox_normal_reference(seed_1, class_id_C, num_per_class, whole_pairs, stream, dtype=torch.float64).abs()
    squared_radius = z.unflatten(-1, (whole_pairs // 2, 2)).square().sum(-1).repeat_interleave(2, dim=-1)
    error = unit(mean_CD.dtype) * z * (12 + 4 / squared_radius)
    return z[..., :num_dims], error[..., :num_dims]
