"""Triton kernels of task-normalized cross-entropy; kernels/task_normalized_cross_entropy/reference.py has the equation.

One program a row. The norm of every task goes through a [B, K] buffer, so that tasks may have any sizes: a first kernel
writes it, one program a row and task; the second reads its own row of norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..row_loss.rows import Rows
from ..triton_runtime import wrap
from .reference import NORM_FLOOR

LARGEST_BLOCK = 16384


@triton.jit
def task_norm_kernel(logits_ptr, offset_ptr, norm_ptr, logits_stride, num_tasks, BLOCK: tl.constexpr):
    """norm_ptr[row, task] = Euclidean norm of the task's logits in float32."""
    row = tl.program_id(0).to(tl.int64)
    task = tl.program_id(1)
    start = tl.load(offset_ptr + task)
    stop = tl.load(offset_ptr + task + 1)
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(start, stop, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + row * logits_stride + column, mask=column < stop, other=0.0).to(tl.float32)
        squares += z * z
    tl.store(norm_ptr + row * num_tasks + task, tl.sqrt(tl.sum(squares, axis=0)))


@triton.jit
def task_normalized_cross_entropy_kernel(
    logits_ptr, target_ptr, scale_ptr, norm_ptr, task_of_class_ptr, loss_ptr, gradient_ptr,
    logits_stride, num_classes, num_tasks, temperature, norm_floor,
    WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr, TASK_BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of a row: its sums block by block (online in the maximum), then the gradient."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(target_ptr + row)
    valid = (label >= 0) & (label < num_classes)
    scale = tl.where(valid, tl.load(scale_ptr + row), float("nan"))
    logits_row = logits_ptr + row * logits_stride
    norm_row = norm_ptr + row * num_tasks

    norm_sum = tl.zeros([TASK_BLOCK], tl.float32)
    for first in range(0, num_tasks, TASK_BLOCK):
        task = first + tl.arange(0, TASK_BLOCK)
        norm_sum += tl.load(norm_row + task, mask=task < num_tasks, other=0.0)
    mean_norm = tl.sum(norm_sum, axis=0) / num_tasks + norm_floor
    inverse = 1.0 / (mean_norm * temperature)

    z_label = tl.load(logits_row + label, mask=valid, other=0.0).to(tl.float32)
    z_max = z_label
    total_other = z_label * 0.0
    moment = z_label * 0.0
    for first in range(0, num_classes, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = (column < num_classes) & (column != label)
        z = tl.load(logits_row + column, mask=inside, other=float("-inf")).to(tl.float32)
        new_max = tl.maximum(z_max, tl.max(z, axis=0))
        e = tl.exp((z - new_max) * inverse)
        shrink = tl.exp((z_max - new_max) * inverse)
        total_other = total_other * shrink + tl.sum(e, axis=0)
        moment = moment * shrink + tl.sum(tl.where(inside & (e != 0.0), e * (z - z_label), 0.0), axis=0)
        z_max = new_max
    total = total_other + tl.exp((z_label - z_max) * inverse)
    tl.store(loss_ptr + row, scale * (tl.log(total) + (z_max - z_label) * inverse))

    if WITH_GRADIENT:
        factor = scale * inverse
        share = factor / total
        along = factor * (moment / total / mean_norm) / num_tasks
        for first in range(0, num_classes, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < num_classes
            z = tl.load(logits_row + column, mask=inside, other=float("-inf")).to(tl.float32)
            norm = tl.load(norm_row + tl.load(task_of_class_ptr + column, mask=inside, other=0), mask=inside, other=1.0)
            pull = tl.where(norm > 0.0, along / tl.where(norm > 0.0, norm, 1.0), 0.0)
            g = tl.where(column == label, -total_other, tl.exp((z - z_max) * inverse)) * share
            gradient = g - tl.where(inside, z, 0.0) * pull
            tl.store(gradient_ptr + row * num_classes + column, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)


_tables: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}


def _task_table(task_sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """[K + 1 + C] int32 on ``device``: where every task starts, then the task of every class.

    Kept between calls: the transfer would wait for the device, and cannot happen inside a CUDA graph.
    """
    table = _tables.get((task_sizes, device))
    if table is None:
        offsets, task_of_class = [0], []
        for task, size in enumerate(task_sizes):
            offsets.append(offsets[-1] + size)
            task_of_class += [task] * size
        table = torch.tensor(offsets + task_of_class, dtype=torch.int32, device=device)
        if type(table) is torch.Tensor and not torch.compiler.is_compiling():  # never a tracer's stand-in
            if len(_tables) >= 64:
                _tables.clear()
            _tables[task_sizes, device] = table
    return table


def task_normalized_cross_entropy_triton(
    rows: Rows, task_sizes: Sequence[int], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of float32, bfloat16 or float16 logits."""
    logits_BC, target_B, scale_B, with_gradient = rows.dense()
    num_rows, num_classes = logits_BC.shape
    num_tasks = len(task_sizes)
    loss_B, gradient_BC = rows.memory()
    if num_rows == 0:
        return loss_B, gradient_BC
    table = _task_table(tuple(task_sizes), logits_BC.device)
    norm_BK = torch.empty((num_rows, num_tasks), dtype=torch.float32, device=logits_BC.device)
    task_block = min(triton.next_power_of_2(max(*task_sizes, 16)), 1024)
    wrap(task_norm_kernel)[(num_rows, num_tasks)](
        logits_BC, table, norm_BK, logits_BC.stride(0), num_tasks, BLOCK=task_block, num_warps=1
    )
    block = min(triton.next_power_of_2(max(num_classes, 16)), LARGEST_BLOCK)
    wrap(task_normalized_cross_entropy_kernel)[(num_rows,)](
        logits_BC, target_B, scale_B, norm_BK, table[num_tasks + 1 :], loss_B, gradient_BC,
        logits_BC.stride(0), num_classes, num_tasks, temperature, NORM_FLOOR,
        WITH_GRADIENT=with_gradient, BLOCK=block, TASK_BLOCK=min(triton.next_power_of_2(num_tasks), 1024),
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return loss_B, gradient_BC
