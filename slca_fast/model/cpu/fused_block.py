"""A fused block on the CPU: a transformer block with the native library's own products (kernels/vit_block/fused.py).

Every thread takes a group of images through the whole block, so that what one pass or product writes the next one finds
in the cache. A last block can leave out what only the other tokens than the first would need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slca_fast.kernels.vit_block import fused
from slca_fast.model.cpu.layers import BlockGradients, PlainBlock, Through, Weights, linears

# Rows that a thread takes through a block at once: what they need stays in its cache.
GROUP_ROWS = 260

outer = fused.outer


@dataclass
class Saved:
    """What one block's backward needs."""

    native: fused.FusedBlock
    hidden1_MD: Tensor
    context_QD: Tensor
    hidden2_QD: Tensor
    activated_QF: Tensor


def forward(
    block: PlainBlock, weights: Weights, num_images: int, x_MD: Tensor, y_MD: Tensor | None, bias_D: Tensor | None,
    keep: bool, first_token_only: bool = False,
) -> tuple[Tensor, Tensor, Saved | None]:  # fmt: skip
    """(stream after attention, what the MLP adds to it without its bias, what ``backward`` needs).

    With ``first_token_only`` both have a row per image.
    """
    attn, mlp = block.attn, block.mlp
    (num_rows, width), tokens, hidden = x_MD.shape, len(x_MD) // num_images, mlp.fc1.out_features
    queries = 1 if first_token_only else tokens
    native = fused.FusedBlock(
        num_images, tokens, queries, attn.num_heads, attn.head_dim, hidden, max(1, GROUP_ROWS // tokens),
        torch.get_num_threads(), eps1=block.norm1.eps, eps2=block.norm2.eps,
    )  # fmt: skip
    native.set(
        **{name: weights.packed(linear, False, fused.pack_weight) for name, linear in linears(block).items()},
        qkv_bias=attn.qkv.bias, proj_bias=attn.proj.bias, fc1_bias=mlp.fc1.bias,
        gamma1=block.norm1.weight, beta1=block.norm1.bias, gamma2=block.norm2.weight, beta2=block.norm2.bias,
    )  # fmt: skip
    x_out_QD, y_out_QD = _floats(num_images * queries, width), _empty(weights, num_images * queries, width)
    saved = None
    if keep:
        num_late = num_images * queries
        # Pairs of bfloat16 are multiplied at once: their rows have an even length.
        stride = tokens + tokens % (4 // weights.dtype.itemsize)
        saved = Saved(
            native,
            _empty(weights, num_rows, width),
            _empty(weights, num_late, width),
            _empty(weights, num_late, width),
            _empty(weights, num_late, hidden),
        )
        native.set(
            # Without anything to add the sum is the input.
            sum1=_floats(num_rows, width) if y_MD is not None else x_MD,
            mean1=_floats(num_rows), inv_std1=_floats(num_rows), hidden1=saved.hidden1_MD,
            qkv_out=_empty(weights, num_rows, 3 * width),
            probabilities=_empty(weights, num_late, attn.num_heads, stride), context=saved.context_QD,
            sum2=x_out_QD, mean2=_floats(num_late), inv_std2=_floats(num_late), hidden2=saved.hidden2_QD,
            slope=_empty(weights, num_late, hidden), activated=saved.activated_QF,
        )  # fmt: skip
    fused.forward(native, weights.dtype, x_MD, y_MD, bias_D, x_out_QD, y_out_QD)
    return x_out_QD, y_out_QD, saved


def backward(
    block: PlainBlock, weights: Weights, num_images: int, s: Saved, grad_QD: Tensor, rounded_QD: Tensor,
    bias_sum_D: Tensor,
) -> tuple[Tensor, Tensor, Tensor, BlockGradients]:  # fmt: skip
    """(gradient of the stream before, the same rounded, its sum over rows, what the parameters get).

    ``grad_QD`` is overwritten.
    """
    num_rows, width = s.hidden1_MD.shape
    num_late, hidden = s.activated_QF.shape
    back = {f"{name}_back": weights.packed(layer, True, fused.pack_weight) for name, layer in linears(block).items()}
    s.native.set(**back)
    grad_fc1_QF, grad_proj_QD = _empty(weights, num_late, hidden), _empty(weights, num_late, width)
    grad_qkv_MK, rounded_MD = _empty(weights, num_rows, 3 * width), _empty(weights, num_rows, width)
    grad_MD = grad_QD if num_late == num_rows else _floats(num_rows, width)
    sums = _floats(hidden + 9 * width)
    fused.backward(s.native, grad_QD, rounded_QD, grad_fc1_QF, grad_proj_QD, grad_qkv_MK, grad_MD, rounded_MD, sums)
    fc1_bias, gamma2, beta2, proj_bias, qkv_bias, gamma1, beta1, bias_before = sums.split(
        [hidden, width, width, width, 3 * width, width, width, width]
    )
    return grad_MD, rounded_MD, bias_before, BlockGradients(
        (gamma1, beta1),
        Through(s.hidden1_MD, grad_qkv_MK, qkv_bias),
        Through(s.context_QD, grad_proj_QD, proj_bias),
        (gamma2, beta2),
        Through(s.hidden2_QD, grad_fc1_QF, fc1_bias),
        Through(s.activated_QF, rounded_QD, bias_sum_D),
    )  # fmt: skip


def _floats(*shape: int) -> Tensor:
    # Whatever the process's default dtype and device.
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _empty(weights: Weights, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=weights.dtype, device="cpu")
