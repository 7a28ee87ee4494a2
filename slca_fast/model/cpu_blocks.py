"""A stack of transformer blocks on the CPU, forward and backward, as matrix products and one pass between each two.

timm's blocks under autocast spend nearly half of a training step on casts, copies, norms, GELU and additions. Here
activations are kept in the dtype of the products (float32, or bfloat16 for bf16), the residual stream in float32, and
whatever stands between two products is one native pass (kernels/vit_block). Only the gradients that somebody asked for
are computed: a frozen weight costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from slca_fast.kernels.lora_linear.native_kernel import thin_products
from slca_fast.kernels.lora_linear.reference import merged_weight
from slca_fast.kernels.vit_block import native_kernel as passes
from slca_fast.model.lora import LoraLinear


def why_not(blocks: Sequence[nn.Module]) -> str | None:
    """Why ``NativeBlocks`` cannot serve ``blocks``; None if it can."""
    reason = passes.why_not() or (None if len(blocks) else "there is no block but the last")
    for block in blocks:
        reason = reason or _why_not_block(block)
    return reason


def _why_not_block(block: nn.Module) -> str | None:
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return f"a {type(block).__name__} is not timm's plain block"
    attn, mlp = block.attn, block.mlp
    for name, module in (("norm1", block.norm1), ("norm2", block.norm2)):
        if not isinstance(module, nn.LayerNorm) or module.weight is None or module.bias is None:
            return f"its {name} is no LayerNorm with weight and bias"
    extras = (block.ls1, block.ls2, block.drop_path1, block.drop_path2, attn.q_norm, attn.k_norm, attn.norm, mlp.norm)
    if any(not isinstance(module, nn.Identity) for module in extras):
        return "it has layer scales, dropped paths or norms inside attention or MLP"
    if getattr(attn, "gate", None) is not None:
        return "its attention is gated"
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in block.modules()):
        return "it has dropout"
    if not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "none":
        return f"its activation is {type(mlp.act).__name__}, not the exact GELU"
    for linear in _linears(block):
        if type(linear) not in (nn.Linear, LoraLinear) or linear.bias is None:
            return f"one of its layers is a {type(linear).__name__} or has no bias"
        if isinstance(linear, LoraLinear) and linear.form != "merged":
            return "its LoRA is not merged"
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in block.parameters()):
        return "its parameters are not in float32 on the CPU"
    return None


class NativeBlocks:
    """What ``nn.Sequential(*blocks)`` computes, with matrix products in ``dtype``; differentiable once.

    Only for blocks that ``why_not`` accepts.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._kept: Weights | None = None

    def __call__(self, blocks: Sequence[Block], tokens_BND: Tensor) -> Tensor:
        """``[B, N, D]`` -> the same, float32."""
        parameters = [p for block in blocks for p in _parameters(block)]
        weights = self._kept or Weights(self.dtype)
        with torch.autocast("cpu", enabled=False):
            # Under no_grad needs_input_grad says nothing: it is taken from the tensors alone.
            return _Blocks.apply(tokens_BND.float(), tuple(blocks), weights, torch.is_grad_enabled(), *parameters)

    @contextmanager
    def keeping_weights(self) -> Iterator[None]:
        """Matrices are rounded and merged once for all calls within; no parameter may change meanwhile."""
        self._kept = Weights(self.dtype)
        try:
            yield
        finally:
            self._kept = None


class Weights:
    """The matrices of linear layers in the dtype of the products, LoRA merged; made at their first use."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._of: dict[nn.Linear, Tensor] = {}

    def of(self, linear: nn.Linear) -> Tensor:
        """``[out, in]``, without a gradient."""
        if linear not in self._of:
            weight = linear.weight.detach()
            if isinstance(linear, LoraLinear):
                A, B = linear.lora_A.detach(), linear.lora_B.detach()
                self._of[linear] = merged_weight(weight, A, B, linear.scale, self.dtype)
            else:
                self._of[linear] = weight.to(self.dtype)
        return self._of[linear]


@dataclass
class _Saved:
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


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens_BND, blocks, weights, grad_enabled, *parameters):
        ctx.blocks, ctx.weights, ctx.num_images = blocks, weights, len(tokens_BND)
        # The backward reads parameters; saving them makes autograd notice a change in between.
        ctx.save_for_backward(*parameters)
        training = grad_enabled and any(ctx.needs_input_grad)
        saved: list[_Saved] = []
        x_MD, y_MD, bias_D = tokens_BND.reshape(-1, tokens_BND.shape[-1]).contiguous(), None, None
        for block in blocks:
            x_MD, y_MD = _forward(block, weights, ctx.num_images, x_MD, y_MD, bias_D, saved if training else None)
            bias_D = block.mlp.fc2.bias
        ctx.saved = saved
        return passes.residual_sum(x_MD, y_MD, bias_D).view_as(tokens_BND)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BND):
        _ = ctx.saved_tensors
        if not ctx.saved:
            raise RuntimeError("the native blocks keep nothing for a second backward pass: run the forward pass again")
        wanted = iter(ctx.needs_input_grad[4:])
        wants = [[next(wanted) for _ in _parameters(block)] for block in ctx.blocks]
        shape, width = grad_BND.shape, grad_BND.shape[-1]
        # The stream's gradient is updated in place; the caller's stays what it was.
        grad_MD = grad_BND.reshape(-1, width).clone(memory_format=torch.contiguous_format)
        rounded_MD, bias_sum_D = passes.round_and_sum(grad_MD, ctx.weights.dtype)
        gradients: list[list[Tensor | None]] = []
        for block, want in zip(reversed(ctx.blocks), reversed(wants)):
            grad_MD, rounded_MD, mine, bias_sum_D = _backward(
                block, ctx.weights, ctx.num_images, ctx.saved.pop(), grad_MD, rounded_MD, bias_sum_D, want
            )
            gradients.append(mine)
        flat = [g for mine in reversed(gradients) for g in mine]
        return grad_MD.view(shape), None, None, None, *flat


def _forward(block, weights, num_images, x_MD, y_MD, bias_D, saved):
    """(stream after attention, what the MLP adds to it without its bias)."""
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
    activated, slope = passes.gelu(before, mlp.fc1.bias, with_slope=saved is not None)
    if saved is not None:
        saved.append(_Saved(sum1, mean1, inv_std1, hidden1, qkv, probabilities, context,
                            sum2, mean2, inv_std2, hidden2, slope, activated))  # fmt: skip
    return sum2, F.linear(activated, weights.of(mlp.fc2))


def _backward(block, weights, num_images, s: _Saved, grad_MD, rounded_MD, bias_sum_D, want):
    """(gradient of the stream before, the same rounded, the parameters' gradients, its sum over rows)."""
    attn, mlp = block.attn, block.mlp
    norm1_want, qkv_want, proj_want, norm2_want, fc1_want, fc2_want = _by_layer(block, want)
    fc2 = _linear_gradients(mlp.fc2, rounded_MD, s.activated, bias_sum_D, fc2_want)
    grad_MF, bias_sum_F = passes.gelu_backward(rounded_MD @ weights.of(mlp.fc2), s.slope)
    fc1 = _linear_gradients(mlp.fc1, grad_MF, s.hidden2, bias_sum_F, fc1_want)
    grad_MD, rounded_MD, sums = passes.residual_norm_backward(
        grad_MF @ weights.of(mlp.fc1), s.sum2, s.mean2, s.inv_std2, block.norm2.weight, grad_MD
    )
    norm2 = _of_norm(sums, norm2_want)
    proj = _linear_gradients(attn.proj, rounded_MD, s.context, sums[2], proj_want)
    grad_context = passes.split_heads(rounded_MD @ weights.of(attn.proj), None, num_images, 1, attn.num_heads)[0]
    q, k, v = s.qkv
    grad_qkv = torch.empty_like(s.qkv)
    torch.bmm(s.probabilities.transpose(1, 2), grad_context, out=grad_qkv[2])
    grad_scores = passes.softmax_backward_(torch.bmm(grad_context, v.transpose(1, 2)), s.probabilities, attn.scale)
    torch.bmm(grad_scores, k, out=grad_qkv[0])
    torch.bmm(grad_scores.transpose(1, 2), q, out=grad_qkv[1])
    grad_MK, bias_sum_K = passes.merge_heads(grad_qkv, num_images, with_sum=True)
    qkv = _linear_gradients(attn.qkv, grad_MK, s.hidden1, bias_sum_K, qkv_want)
    grad_MD, rounded_MD, sums = passes.residual_norm_backward(
        grad_MK @ weights.of(attn.qkv), s.sum1, s.mean1, s.inv_std1, block.norm1.weight, grad_MD
    )
    norm1 = _of_norm(sums, norm1_want)
    return grad_MD, rounded_MD, [*norm1, *qkv, *proj, *norm2, *fc1, *fc2], sums[2]


def _linear_gradients(linear, grad_MO, x_MI, bias_sum_O, want) -> list[Tensor | None]:
    """Gradients of weight, bias (and LoRA's A and B) in float32, as far as they are wanted."""
    found = [_outer(grad_MO, x_MI) if want[0] else None, bias_sum_O if want[1] else None]
    if isinstance(linear, LoraLinear):
        A, B = linear.lora_A.to(x_MI.dtype), linear.lora_B.to(x_MI.dtype)
        through_MR, both_OS = thin_products(grad_MO, x_MI @ A.T, B)
        found.append((linear.scale * (through_MR.to(x_MI.dtype).T @ x_MI)).float() if want[2] else None)
        found.append((linear.scale * both_OS[:, :-1]).float() if want[3] else None)
    return found


def _outer(grad_MO: Tensor, x_MI: Tensor) -> Tensor:
    """grad^T x in float32; oneDNN makes the product faster with the narrower factor on the left."""
    if grad_MO.shape[1] <= x_MI.shape[1]:
        return (grad_MO.T @ x_MI).float()
    return torch.empty(grad_MO.shape[1], x_MI.shape[1], dtype=torch.float32).copy_((x_MI.T @ grad_MO).T)


def _of_norm(sums_3D: Tensor, want: Sequence[bool]) -> list[Tensor | None]:
    return [sums_3D[i] if want[i] else None for i in range(2)]


def _linears(block: Block) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    return block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2


def _layers(block: Block) -> tuple[nn.Module, ...]:
    return block.norm1, block.attn.qkv, block.attn.proj, block.norm2, block.mlp.fc1, block.mlp.fc2


def _of_layer(layer: nn.Module) -> list[nn.Parameter]:
    found = [layer.weight, layer.bias]
    return [*found, layer.lora_A, layer.lora_B] if isinstance(layer, LoraLinear) else found


def _parameters(block: Block) -> list[nn.Parameter]:
    return [p for layer in _layers(block) for p in _of_layer(layer)]


def _by_layer(block: Block, want: list[bool]) -> list[list[bool]]:
    cut, start = [], 0
    for layer in _layers(block):
        end = start + len(_of_layer(layer))
        cut.append(want[start:end])
        start = end
    return cut
