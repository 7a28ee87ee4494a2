"""Per-class moments in two Triton launches for all classes, of any sizes; ``reference.py`` has the equation.

A segmented symmetric rank-k update: rows are gathered in label order, centred in float32 before any rounding, and
multiplied for the tiles on and above the diagonal only; each tile is written twice. No synchronisation with the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import wrap

MEAN_ROWS, MEAN_COLUMNS = 32, 64
INPUT_PRECISIONS = ("ieee", "tf32x3")


@triton.jit
def class_moments_mean_kernel(
    features_ptr, order_ptr, offset_ptr, mean_ptr, correction_ptr,
    row_stride, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program per class and block of columns: the mean, then what its rounding left over."""
    num_blocks = tl.cdiv(dim, COLUMNS)
    index = tl.program_id(0).to(tl.int64) // num_blocks
    column = (tl.program_id(0) % num_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < dim
    first = tl.load(offset_ptr + index)
    end = tl.load(offset_ptr + index + 1)
    count = tl.maximum(end - first, 1).to(tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        source = tl.load(order_ptr + row, mask=row < end, other=0)
        mask = (row < end)[:, None] & inside[None, :]
        x = tl.load(features_ptr + source[:, None] * row_stride + column[None, :], mask=mask, other=0.0)
        total += tl.sum(x.to(tl.float32), axis=0)
    mean = total / count
    left_over = tl.zeros([COLUMNS], tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        source = tl.load(order_ptr + row, mask=row < end, other=0)
        mask = (row < end)[:, None] & inside[None, :]
        x = tl.load(features_ptr + source[:, None] * row_stride + column[None, :], mask=mask, other=0.0)
        left_over += tl.sum(tl.where(mask, x.to(tl.float32) - mean[None, :], 0.0), axis=0)
    tl.store(mean_ptr + index * dim + column, mean, mask=inside)
    tl.store(correction_ptr + index * dim + column, left_over / count, mask=inside)


@triton.jit
def _centred(features_ptr, source, valid, column, dim, row_stride, mean, correction):
    mask = valid[:, None] & (column < dim)[None, :]
    x = tl.load(features_ptr + source[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, (x - mean[None, :]) - correction[None, :], 0.0)


@triton.jit
def class_moments_fwd_kernel(
    features_ptr, order_ptr, offset_ptr, mean_ptr, correction_ptr, scatter_ptr,
    row_stride, dim, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per class and tile of the scatter; tiles below the diagonal have nothing to do."""
    num_tiles = tl.cdiv(dim, TILE)
    index = tl.program_id(0).to(tl.int64) // (num_tiles * num_tiles)
    tile = tl.program_id(0) % (num_tiles * num_tiles)
    tile_i = tile // num_tiles
    tile_j = tile % num_tiles
    if tile_i <= tile_j:
        column_i = tile_i * TILE + tl.arange(0, TILE)
        column_j = tile_j * TILE + tl.arange(0, TILE)
        first = tl.load(offset_ptr + index)
        end = tl.load(offset_ptr + index + 1)
        mean_i = tl.load(mean_ptr + index * dim + column_i, mask=column_i < dim, other=0.0)
        mean_j = tl.load(mean_ptr + index * dim + column_j, mask=column_j < dim, other=0.0)
        correction_i = tl.load(correction_ptr + index * dim + column_i, mask=column_i < dim, other=0.0)
        correction_j = tl.load(correction_ptr + index * dim + column_j, mask=column_j < dim, other=0.0)
        total = tl.zeros([TILE, TILE], tl.float32)
        for start in range(first, end, ROWS):
            row = start + tl.arange(0, ROWS)
            valid = row < end
            source = tl.load(order_ptr + row, mask=valid, other=0)
            x_i = _centred(features_ptr, source, valid, column_i, dim, row_stride, mean_i, correction_i)
            x_j = _centred(features_ptr, source, valid, column_j, dim, row_stride, mean_j, correction_j)
            total = tl.dot(tl.trans(x_i), x_j, total, input_precision=PRECISION)
        mask = (column_i < dim)[:, None] & (column_j < dim)[None, :]
        base = scatter_ptr + index * dim * dim
        tl.store(base + column_i[:, None] * dim + column_j[None, :], total, mask=mask)
        if tile_i < tile_j:
            tl.store(base + column_j[:, None] * dim + column_i[None, :], tl.trans(total), mask=tl.trans(mask))


def tile_shape(dim: int) -> tuple[int, int, int]:
    """Side of a tile, rows per step and warps for [dim, dim] scatters: the largest that stay in registers."""
    return (128, 16, 8) if dim > 256 else (64, 32, 4) if dim > 32 else (16, 32, 4)


def class_moments_triton(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, input_precision: str = "ieee"
) -> tuple[Tensor, Tensor, Tensor]:
    """``class_moments_reference`` with float32 accumulation; ``input_precision`` is that of the products.

    "ieee" multiplies in float32, "tf32x3" on tensor cores in three passes, which keeps float32's accuracy.
    """
    assert input_precision in INPUT_PRECISIONS, input_precision
    dim = features_ND.shape[1]
    if features_ND.stride(1) != 1:
        features_ND = features_ND.contiguous()
    order_N = torch.argsort(labels_N, stable=True)
    class_C1 = torch.arange(num_classes + 1, device=labels_N.device, dtype=labels_N.dtype)
    offset_C1 = torch.searchsorted(labels_N[order_N], class_C1)
    mean_CD = features_ND.new_empty(num_classes, dim, dtype=torch.float32)
    correction_CD = torch.empty_like(mean_CD)
    scatter_CDD = mean_CD.new_empty(num_classes, dim, dim)
    if mean_CD.numel():
        tile, num_rows, num_warps = tile_shape(dim)
        row_stride = features_ND.stride(0)
        wrap(class_moments_mean_kernel)[(num_classes * triton.cdiv(dim, MEAN_COLUMNS),)](
            features_ND, order_N, offset_C1, mean_CD, correction_CD, row_stride, dim,
            ROWS=MEAN_ROWS, COLUMNS=MEAN_COLUMNS,
        )  # fmt: skip
        wrap(class_moments_fwd_kernel)[(num_classes * triton.cdiv(dim, tile) ** 2,)](
            features_ND, order_N, offset_C1, mean_CD, correction_CD, scatter_CDD, row_stride, dim,
            ROWS=num_rows, TILE=tile, PRECISION=input_precision, num_warps=num_warps,
        )  # fmt: skip
    return offset_C1.diff(), mean_CD + correction_CD, scatter_CDD
