"""Triton kernels of symmetric cross-entropy; kernels/symmetric_cross_entropy/reference.py has the equation.

A row of up to 32,768 classes stays on chip: one read of the logits, one write of the gradient. Longer rows are read in
blocks, three times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..row_loss.rows import Rows
from ..triton_runtime import wrap
from .reference import PROBABILITY_FLOOR, REVERSE_SCALE

ON_CHIP_CLASSES = 32768
BLOCK_OF_LONG_ROW = 8192


@triton.jit
def symmetric_cross_entropy_row_kernel(
    logits_ptr, target_ptr, scale_ptr, loss_ptr, gradient_ptr,
    logits_stride, num_classes, ce_weight, reverse_weight, floor,
    WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, the whole row in registers."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr + row)
    column = tl.arange(0, BLOCK)
    inside = column < num_classes
    gradient_row = gradient_ptr + row * num_classes
    if scale == 0.0:
        tl.store(loss_ptr + row, 0.0)
        if WITH_GRADIENT:
            tl.store(gradient_row + column, tl.zeros([BLOCK], gradient_ptr.dtype.element_ty), mask=inside)
    else:
        label = tl.load(target_ptr + row)
        scale = tl.where((label >= 0) & (label < num_classes), scale, float("nan"))
        z = tl.load(logits_ptr + row * logits_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
        is_label = column == label
        z_max = tl.max(z, axis=0)
        e = tl.exp(z - z_max)
        e_label = tl.sum(tl.where(is_label, e, 0.0), axis=0)
        e_other = tl.where(is_label, 0.0, e)
        total_other = tl.sum(e_other, axis=0)
        total = total_other + e_label
        floored = inside & (e_other < floor * total) & (column != label)
        kept = tl.where(floored, 0.0, e_other)
        kept_sum = tl.sum(kept, axis=0) / total  # pyright: ignore[reportOperatorIssue]  (a sum over one axis is a tensor)
        num_floored = tl.sum(tl.where(floored, 1.0, 0.0), axis=0)
        z_label = tl.sum(tl.where(is_label, z, 0.0), axis=0)
        loss = ce_weight * (tl.log(total) + z_max - z_label) + reverse_weight * (kept_sum + floor * num_floored)
        tl.store(loss_ptr + row, scale * loss)
        if WITH_GRADIENT:
            factor = scale / total
            shared = ce_weight - reverse_weight * kept_sum
            gradient = factor * (e_other * shared + reverse_weight * kept)
            # p_y - 1 as minus the sum of the others: no cancellation when p_y is close to 1.
            label_gradient = -factor * (ce_weight * total_other + reverse_weight * kept_sum * e_label)
            gradient = tl.where(is_label, label_gradient, gradient)
            tl.store(gradient_row + column, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)


@triton.jit
def symmetric_cross_entropy_long_row_kernel(
    logits_ptr, target_ptr, scale_ptr, loss_ptr, gradient_ptr,
    logits_stride, num_classes, ce_weight, reverse_weight, floor,
    WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, block by block: online log-sum-exp, then the clamped sum, then the gradient."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr + row)
    gradient_row = gradient_ptr + row * num_classes
    if scale == 0.0:
        tl.store(loss_ptr + row, 0.0)
        if WITH_GRADIENT:
            for start in range(0, num_classes, BLOCK):
                column = start + tl.arange(0, BLOCK)
                zeros = tl.zeros([BLOCK], gradient_ptr.dtype.element_ty)
                tl.store(gradient_row + column, zeros, mask=column < num_classes)
    else:
        label = tl.load(target_ptr + row)
        valid = (label >= 0) & (label < num_classes)
        scale = tl.where(valid, scale, float("nan"))
        logits_row = logits_ptr + row * logits_stride
        z_label = tl.load(logits_row + label, mask=valid, other=0.0).to(tl.float32)
        z_max = z_label
        total_other = z_label * 0.0
        for start in range(0, num_classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            z = tl.load(logits_row + column, mask=column < num_classes, other=float("-inf")).to(tl.float32)
            new_max = tl.maximum(z_max, tl.max(z, axis=0))
            e_other = tl.where(column == label, 0.0, tl.exp(z - new_max))
            total_other = total_other * tl.exp(z_max - new_max) + tl.sum(e_other, axis=0)
            z_max = new_max
        e_label = tl.exp(z_label - z_max)
        total = total_other + e_label
        kept_sum = total * 0.0
        num_floored = total * 0.0
        for start in range(0, num_classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            z = tl.load(logits_row + column, mask=column < num_classes, other=float("-inf")).to(tl.float32)
            other = (column < num_classes) & (column != label)
            e = tl.exp(z - z_max)
            kept_sum += tl.sum(tl.where(other & (e >= floor * total), e, 0.0), axis=0)
            num_floored += tl.sum(tl.where(other & (e < floor * total), 1.0, 0.0), axis=0)
        kept_sum = kept_sum / total
        loss = ce_weight * (tl.log(total) + z_max - z_label) + reverse_weight * (kept_sum + floor * num_floored)
        tl.store(loss_ptr + row, scale * loss)
        if WITH_GRADIENT:
            factor = scale / total
            shared = ce_weight - reverse_weight * kept_sum
            label_gradient = -factor * (ce_weight * total_other + reverse_weight * kept_sum * e_label)
            for start in range(0, num_classes, BLOCK):
                column = start + tl.arange(0, BLOCK)
                z = tl.load(logits_row + column, mask=column < num_classes, other=float("-inf")).to(tl.float32)
                e = tl.exp(z - z_max)
                kept = tl.where(e >= floor * total, e, 0.0)
                gradient = tl.where(column == label, label_gradient, factor * (e * shared + reverse_weight * kept))
                tl.store(gradient_row + column, gradient.to(gradient_ptr.dtype.element_ty), mask=column < num_classes)


def launch_shape(num_classes: int) -> tuple[bool, int, int]:
    """Whether a row of ``num_classes`` stays on chip, its block and its number of warps (measured on no GPU yet)."""
    if num_classes > ON_CHIP_CLASSES:
        return False, BLOCK_OF_LONG_ROW, 8
    block = triton.next_power_of_2(max(num_classes, 16))
    return True, block, min(32, max(1, block // 512))


def symmetric_cross_entropy_triton(
    rows: Rows, ce_weight: float, rce_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of float32, bfloat16 or float16 logits."""
    logits_BC, target_B, scale_B, with_gradient = rows.dense()
    num_rows, num_classes = logits_BC.shape
    loss_B, gradient_BC = rows.memory()
    if num_rows == 0:
        return loss_B, gradient_BC
    on_chip, block, num_warps = launch_shape(num_classes)
    kernel = symmetric_cross_entropy_row_kernel if on_chip else symmetric_cross_entropy_long_row_kernel
    wrap(kernel)[(num_rows,)](
        logits_BC, target_B, scale_B, loss_B, gradient_BC,
        logits_BC.stride(0), num_classes, ce_weight, rce_weight * REVERSE_SCALE, PROBABILITY_FLOOR,
        WITH_GRADIENT=with_gradient, BLOCK=block, num_warps=num_warps,
    )  # fmt: skip
    return loss_B, gradient_BC
