"""A composed block on the CPU: torch's products, and a native pass between each two (kernels/vit_block/passes.py).

For processors on which torch's products are the faster ones; elsewhere fused_block.py does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from slca_fast.kernels.vit_block import passes
from slca_fast.model.cpu.layers import BlockGradients, PlainBlock, Through, Weights


@dataclass
class Saved:
    """What one block's backward needs; ``[B * N, ...]`` but for the heads."""

    sum1: Tensor
    mean1: Tensor
    inv_std1: Tensor
    hidden1: Tensor
    qkv: Tensor
    """``[3, B * H, N, d]``."""
    probabilities: Tensor
    """``[B * H, N, N]``."""
    context: Tensor
    sum2: Tensor
    mean2: Tensor
    inv_std2: Tensor
    hidden2: Tensor
    slope: Tensor
    activated: Tensor


def forward(
    block: PlainBlock, weights: Weights, num_images: int, x_MD: Tensor, y_MD: Tensor | None, bias_D: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Saved | None]:  # fmt: skip
    """(stream after attention, what the MLP adds to it without its bias, what ``backward`` needs)."""
    dtype = weights.dtype
    attn, mlp, heads = block.attn, block.mlp, block.attn.num_heads
    norm = block.norm1
    sum1, hidden1, mean1, inv_std1 = passes.residual_norm(x_MD, y_MD, bias_D, norm.weight, norm.bias, norm.eps, dtype)
    qkv = passes.split_heads(F.linear(hidden1, weights.of(attn.qkv)), attn.qkv.bias, num_images, 3, heads)
    probabilities = passes.softmax_(torch.bmm(qkv[0], qkv[1].transpose(1, 2)), attn.scale)
    context, _ = passes.merge_heads(torch.bmm(probabilities, qkv[2])[None], num_images, with_sum=False)
    norm = block.norm2
    sum2, hidden2, mean2, inv_std2 = passes.residual_norm(
        sum1, F.linear(context, weights.of(attn.proj)), attn.proj.bias, norm.weight, norm.bias, norm.eps, dtype
    )
    before = F.linear(hidden2, weights.of(mlp.fc1))
    activated, slope = passes.gelu(before, mlp.fc1.bias, with_slope=keep)
    saved = None if slope is None else Saved(sum1, mean1, inv_std1, hidden1, qkv, probabilities, context,
                                             sum2, mean2, inv_std2, hidden2, slope, activated)  # fmt: skip
    return sum2, F.linear(activated, weights.of(mlp.fc2)), saved


def backward(
    block: PlainBlock, weights: Weights, num_images: int, s: Saved, grad_MD: Tensor, rounded_MD: Tensor,
    bias_sum_D: Tensor,
) -> tuple[Tensor, Tensor, Tensor, BlockGradients]:  # fmt: skip
    """(gradient of the stream before, the same rounded, its sum over rows, what the parameters get).

    ``grad_MD`` is overwritten.
    """
    attn, mlp = block.attn, block.mlp
    fc2 = Through(s.activated, rounded_MD, bias_sum_D)
    grad_MF, bias_sum_F = passes.gelu_backward(rounded_MD @ weights.of(mlp.fc2), s.slope)
    fc1 = Through(s.hidden2, grad_MF, bias_sum_F)
    grad_MD, rounded_MD, norm2 = passes.residual_norm_backward(
        grad_MF @ weights.of(mlp.fc1), s.sum2, s.mean2, s.inv_std2, block.norm2.weight, grad_MD
    )
    proj = Through(s.context, rounded_MD, norm2[2])
    grad_context = passes.split_heads(rounded_MD @ weights.of(attn.proj), None, num_images, 1, attn.num_heads)[0]
    q, k, v = s.qkv
    grad_qkv = torch.empty_like(s.qkv)
    torch.bmm(s.probabilities.transpose(1, 2), grad_context, out=grad_qkv[2])
    grad_scores = passes.softmax_backward_(torch.bmm(grad_context, v.transpose(1, 2)), s.probabilities, attn.scale)
    torch.bmm(grad_scores, k, out=grad_qkv[0])
    torch.bmm(grad_scores.transpose(1, 2), q, out=grad_qkv[1])
    grad_MK, bias_sum_K = passes.merge_heads(grad_qkv, num_images, with_sum=True)
    assert bias_sum_K is not None
    qkv = Through(s.hidden1, grad_MK, bias_sum_K)
    grad_MD, rounded_MD, norm1 = passes.residual_norm_backward(
        grad_MK @ weights.of(attn.qkv), s.sum1, s.mean1, s.inv_std1, block.norm1.weight, grad_MD
    )
    mine = BlockGradients((norm1[0], norm1[1]), qkv, proj, (norm2[0], norm2[1]), fc1, fc2)
    return grad_MD, rounded_MD, norm1[2], mine


def outer(grad_MO: Tensor, x_MI: Tensor) -> Tensor:
    """grad^T x in float32; oneDNN makes the product faster with the narrower factor on the left."""
    if grad_MO.shape[1] <= x_MI.shape[1]:
        return (grad_MO.T @ x_MI).float()
    return torch.empty(grad_MO.shape[1], x_MI.shape[1], dtype=torch.float32).copy_((x_MI.T @ grad_MO).T)
