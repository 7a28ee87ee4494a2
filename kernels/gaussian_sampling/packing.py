"""Triangles in half the memory: the rectangular full packed layout, which keeps every block a plain matrix.

With p = ceil(D/2), h = D - p and o = 1 for even D, else 0, a lower triangle L [D, D] becomes a rectangle
[D + o, p]: its first p columns lie in rows o.., and the transpose of the remaining triangle L[p:, p:] fills
the free upper corner. (The idea is LAPACK's RFP format, Gustavson et al. 2010.) All functions take any
leading batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_shape(dim: int) -> tuple[int, int]:
    """Rows and columns of the packed form of a [dim, dim] triangle: exactly dim (dim + 1) / 2 numbers."""
    return dim + 1 - dim % 2, (dim + 1) // 2


def packed_dim(packed: Tensor) -> int:
    """D of a packed triangle [..., D + o, p]."""
    rows, columns = packed.shape[-2:]
    return rows if rows % 2 and columns == (rows + 1) // 2 else rows - 1


def pack_lower(matrix: Tensor) -> Tensor:
    """The lower triangle of [..., D, D] as [..., D + o, p]; what lies above the diagonal is not read."""
    dim = matrix.shape[-1]
    rows, half = packed_shape(dim)
    rest, offset = dim - half, 1 - dim % 2
    packed = matrix.new_zeros(*matrix.shape[:-2], rows, half)
    packed[..., offset:, :] = matrix[..., :, :half].tril()
    packed[..., :rest, half - rest :] += matrix[..., half:, half:].tril().mT
    return packed


def split_lower(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Left part L[:, :p] [..., D, p] and the transposed rest L[p:, p:]^T [..., h, h] of a packed triangle."""
    dim = packed_dim(packed)
    half = packed.shape[-1]
    rest, offset = dim - half, 1 - dim % 2
    return packed[..., offset:, :].tril(), packed[..., :rest, half - rest :].triu()


def unpack_lower(packed: Tensor) -> Tensor:
    """The lower triangle [..., D, D] with zeros above the diagonal."""
    left, rest = split_lower(packed)
    half = packed.shape[-1]
    dim = left.shape[-2]
    matrix = packed.new_zeros(*packed.shape[:-2], dim, dim)
    matrix[..., :, :half] = left
    matrix[..., half:, half:] = rest.mT
    return matrix


def unpack_symmetric(packed: Tensor) -> Tensor:
    """The symmetric matrix [..., D, D] whose lower triangle was packed."""
    lower = unpack_lower(packed)
    return lower + lower.tril(-1).mT


def is_packed(factor: Tensor, dim: int) -> bool:
    """Whether ``factor`` [..., R, K] is a packed triangle of [dim, dim], not a full one; raises for anything else."""
    if tuple(factor.shape[-2:]) == (dim, dim):
        return False
    if tuple(factor.shape[-2:]) == packed_shape(dim):
        return True
    raise ValueError(f"factor must end in {(dim, dim)} or packed {packed_shape(dim)}, got {tuple(factor.shape)}")


def identity_ridge(matrix: Tensor, ridge: float | Tensor) -> Tensor:
    """matrix [..., D, D] + ridge I, as a new tensor; ``ridge`` is a number or [...]."""
    result = matrix.clone()
    ridge = torch.as_tensor(ridge, dtype=matrix.dtype, device=matrix.device)
    result.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    return result
