"""The thin products of the LoRA backward on the CPU, in one read of its g (kernels/csrc/lora_linear.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import native

SYMBOL = "slca_lora_thin_products"
DTYPES = (torch.float32, torch.bfloat16)
RANK_BLOCK = 4
_thin_products = native.function(SYMBOL, "piqqppqppi")


def thin_products(grad_NO: Tensor, u_NR: Tensor, lora_B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """(g B [N, R], g^T [u, 1] [O, R + 1]), float32, for a float32 or bfloat16 ``grad_NO``."""
    num_rows, num_out = grad_NO.shape
    rank = u_NR.shape[1]
    padding = -rank % RANK_BLOCK
    u_NK = F.pad(u_NR.float(), (0, padding)).contiguous()
    B_KO = F.pad(lora_B_OR.float().T, (0, 0, 0, padding)).contiguous()
    through_NK = torch.empty_like(u_NK)
    sums_SO = torch.empty(rank + padding + 1, num_out)
    _thin_products(
        grad_NO.contiguous(), grad_NO.dtype == torch.bfloat16, num_rows, num_out,
        u_NK, B_KO, rank + padding, through_NK, sums_SO, torch.get_num_threads(),
    )  # fmt: skip
    both_OS = torch.cat([sums_SO[:rank], sums_SO[-1:]]).T.contiguous()
    return through_NK[:, :rank].contiguous(), both_OS
