"""A gradient's rows, each times its own number, in Triton: the backward of a loss that wrote its gradient forwards."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def scale_rows_kernel(gradient_ptr, upstream_ptr, upstream_stride, num_classes, BLOCK: tl.constexpr):
    """Row i times upstream[i]; returns at once where that is 1."""
    row = tl.program_id(0).to(tl.int64)
    upstream = tl.load(upstream_ptr + row * upstream_stride).to(tl.float32)
    if upstream != 1.0:
        for start in range(0, num_classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            pointer = gradient_ptr + row * num_classes + column
            gradient = tl.load(pointer, mask=column < num_classes).to(tl.float32) * upstream
            tl.store(pointer, gradient.to(gradient_ptr.dtype.element_ty), mask=column < num_classes)


def scale_rows_(gradient_BC: torch.Tensor, upstream_B: torch.Tensor) -> None:
    """Multiplies row i of the contiguous ``gradient_BC`` by ``upstream_B[i]`` in place, without a synchronisation."""
    num_rows, num_classes = gradient_BC.shape
    if num_rows == 0:
        return
    block = min(triton.next_power_of_2(max(num_classes, 16)), 4096)
    scale_rows_kernel[(num_rows,)](
        gradient_BC, upstream_B, upstream_B.stride(0), num_classes, BLOCK=block,
        num_warps=max(1, block // 512),  # pyright: ignore[reportCallIssue]  (an option of the launch)
    )  # fmt: skip
