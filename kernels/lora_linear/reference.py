"""y = x (W + s B A)^T + b: the truth for tests and benchmarks, with autograd's own backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def merged_weight(weight_OI: Tensor, lora_A_RI: Tensor, lora_B_OR: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """W + s B A, summed in float32 (float64 for float64 inputs) and only then rounded to ``dtype``."""
    wide = torch.promote_types(torch.promote_types(weight_OI.dtype, lora_A_RI.dtype), torch.float32)
    return torch.addmm(weight_OI.to(wide), lora_B_OR.to(wide), lora_A_RI.to(wide), alpha=scale).to(dtype)


def lora_linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    lora_A_RI: Tensor,
    lora_B_OR: Tensor,
    scale: float,
    form: str = "merged",
) -> Tensor:
    """x (W + s B A)^T + b with ``form="merged"``, x W^T + b + s (x A^T) B^T with ``"unmerged"``.

    Computes in the dtype of ``x`` ([..., I] -> [..., O]); the merged weight is formed in float32 first. The
    unmerged form keeps updates that are smaller than one unit in the last place of a low-precision W.
    """
    bias = None if bias_O is None else bias_O.to(x.dtype)
    if form == "merged":
        return F.linear(x, merged_weight(weight_OI, lora_A_RI, lora_B_OR, scale, x.dtype), bias)
    y = F.linear(x, weight_OI.to(x.dtype), bias)
    return y + scale * F.linear(F.linear(x, lora_A_RI.to(x.dtype)), lora_B_OR.to(x.dtype))


def thin_products(grad_NO: Tensor, u_NR: Tensor, lora_B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """(g B [N, R], g^T [u, 1] [O, R + 1]) of the backward, in float32 or wider."""
    dtype = torch.promote_types(grad_NO.dtype, torch.float32)
    extended_NS = torch.cat([u_NR, u_NR.new_ones(u_NR.shape[0], 1)], dim=1)
    return (grad_NO @ lora_B_OR).to(dtype), (grad_NO.T @ extended_NS).to(dtype).contiguous()
