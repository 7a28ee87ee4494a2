"""The thin products of the LoRA backward in Triton: one pass over the upstream gradient g.

A program owns a part of the rows and walks over the outputs: g B stays in registers, [u, 1]^T g leaves as partial sums
that are added in a fixed order afterwards, so the result is the same in every run. (Measured on no GPU yet.)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import interpreted

PART_ROWS = 128
BLOCK_OF_OUTPUTS = 32


@triton.jit
def lora_thin_products_kernel(
    grad_ptr, u_ptr, b_ptr, through_ptr, partial_ptr, num_rows, num_out, rank,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, RANKS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """RANKS: a power of two, at least 16 and above ``rank``; column ``rank`` of u is the 1 that sums the bias.

    WIDEN: multiply in float32 (Triton's interpreter has no bfloat16 product)."""
    part = tl.program_id(0)
    n = part * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, RANKS)
    dtype = tl.float32 if WIDEN else grad_ptr.dtype.element_ty
    u = tl.load(u_ptr + n[:, None] * rank + k[None, :], mask=(n < num_rows)[:, None] & (k < rank)[None, :], other=0.0)
    u = tl.where((k == rank)[None, :], 1.0, u.to(tl.float32)).to(dtype)
    through = tl.zeros([ROWS, RANKS], tl.float32)
    for start in range(0, num_out, BLOCK):
        o = start + tl.arange(0, BLOCK)
        grad = tl.load(
            grad_ptr + n[:, None].to(tl.int64) * num_out + o[None, :],
            mask=(n < num_rows)[:, None] & (o < num_out)[None, :],
            other=0.0,
        ).to(dtype)
        inside_b = (o < num_out)[:, None] & (k < rank)[None, :]
        b = tl.load(b_ptr + o[:, None] * rank + k[None, :], mask=inside_b, other=0.0)
        through += tl.dot(grad, b.to(dtype), input_precision="ieee")
        sums = tl.dot(tl.trans(u), grad, input_precision="ieee")
        pointer = partial_ptr + (part * (rank + 1) + k[:, None]).to(tl.int64) * num_out + o[None, :]
        tl.store(pointer, sums, mask=(k <= rank)[:, None] & (o < num_out)[None, :])
    pointer = through_ptr + n[:, None] * rank + k[None, :]
    tl.store(pointer, through, mask=(n < num_rows)[:, None] & (k < rank)[None, :])


def thin_products(grad_NO: Tensor, u_NR: Tensor, lora_B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """(g B [N, R], g^T [u, 1] [O, R + 1]), float32, for a float32, bfloat16 or float16 ``grad_NO``."""
    num_rows, num_out = grad_NO.shape
    rank = u_NR.shape[1]
    num_parts = triton.cdiv(num_rows, PART_ROWS)
    through_NR = torch.empty(num_rows, rank, dtype=torch.float32, device=grad_NO.device)
    partial_PSO = torch.empty(num_parts, rank + 1, num_out, dtype=torch.float32, device=grad_NO.device)
    if num_rows > 0 and num_out > 0:
        lora_thin_products_kernel[(num_parts,)](
            grad_NO.contiguous(), u_NR.contiguous(), lora_B_OR.contiguous(), through_NR, partial_PSO,
            num_rows, num_out, rank,
            ROWS=PART_ROWS, BLOCK=BLOCK_OF_OUTPUTS, RANKS=max(16, triton.next_power_of_2(rank + 1)),
            WIDEN=interpreted(),
            num_warps=4,  # pyright: ignore[reportCallIssue]  (an option of the launch)
        )  # fmt: skip
    return through_NR, partial_PSO.sum(0).T.contiguous()
