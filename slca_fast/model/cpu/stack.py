"""A stack of transformer blocks on the CPU, forward and backward, as products and one pass between each two.

timm's blocks under autocast spend nearly half of a training step on casts, copies, norms, GELU and additions. Here
activations are kept in the dtype of the products (float32, or bfloat16 for bf16), the residual stream in float32, and
whatever stands between two products is one native pass (kernels/vit_block). Blocks are fused (fused_block.py: products
by the native library) where that is faster, else composed (composed_block.py: products by torch). Only the gradients
that somebody asked for are computed: a frozen weight costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slca_fast.kernels.vit_block import fused, passes
from slca_fast.model import class_token
from slca_fast.model.class_token import Blocks
from slca_fast.model.cpu import composed_block, fused_block
from slca_fast.model.cpu.layers import PlainBlock, Weights, linears, parameters
from slca_fast.model.lora import LoraLinear


def why_not(blocks: Blocks) -> str | None:
    """Why ``NativeBlocks`` cannot serve ``blocks``; None if it can."""
    reason = passes.why_not()
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
    for linear in linears(cast(PlainBlock, block)).values():
        if type(linear) not in (nn.Linear, LoraLinear) or linear.bias is None:
            return f"one of its layers is a {type(linear).__name__} or has no bias"
        if isinstance(linear, LoraLinear) and linear.form != "merged":
            return "its LoRA is not merged"
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in block.parameters()):
        return "its parameters are not in float32 on the CPU"
    return None


def why_torch_multiplies(blocks: Blocks, dtype: torch.dtype) -> str | None:
    """Why products of these blocks in ``dtype`` are torch's; None if the native library's own are used."""
    if reason := fused.why_not(dtype):
        return reason
    odd = any(size % 2 for block in _plain(blocks) for size in (block.attn.head_dim, block.mlp.fc1.out_features))
    return "a width is odd, and bfloat16 goes in pairs" if odd and dtype == torch.bfloat16 else None


def _plain(blocks: Blocks) -> tuple[PlainBlock, ...]:
    return cast(tuple[PlainBlock, ...], tuple(blocks))


class NativeBlocks:
    """What the stack ``nn.Sequential(*blocks)`` computes, with products in ``dtype``; differentiable once.

    Only for blocks that ``why_not`` accepts. ``products`` are "native", by fused blocks (see
    ``why_torch_multiplies``), or "torch", by composed ones.
    """

    def __init__(self, dtype: torch.dtype, products: str) -> None:
        self.dtype, self.products = dtype, products
        self._kept: Weights | None = None

    def __call__(self, blocks: Blocks, tokens_BND: Tensor) -> Tensor:
        """``[B, N, D]`` -> the same, float32."""
        return self._run(blocks, tokens_BND, first_token_only=False)

    def first_token(self, blocks: Blocks, tokens_BND: Tensor) -> Tensor:
        """The first token after all blocks, ``[B, N, D] -> [B, 1, D]``; what it does not need is left out."""
        if self.products == "torch":
            return class_token.first_token(blocks, tokens_BND, self)
        return self._run(blocks, tokens_BND, first_token_only=True)

    def _run(self, blocks: Blocks, tokens_BND: Tensor, first_token_only: bool) -> Tensor:
        if not blocks:
            return tokens_BND
        plain = _plain(blocks)
        learnt = [p for block in plain for p in parameters(block)]
        weights = self._kept or Weights(self.dtype)
        engine = fused_block if self.products == "native" else composed_block
        with torch.autocast("cpu", enabled=False):
            # Under no_grad needs_input_grad says nothing: it is taken from the tensors alone.
            return _Blocks.apply(
                tokens_BND.float(), plain, weights, engine, first_token_only, torch.is_grad_enabled(), *learnt
            )

    @contextmanager
    def keeping_weights(self) -> Iterator[None]:
        """Matrices are rounded and merged once for all calls within; no parameter may change meanwhile."""
        self._kept = Weights(self.dtype)
        try:
            yield
        finally:
            self._kept = None


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens_BND, blocks, weights, engine, first_token_only, grad_enabled, *learnt):
        ctx.blocks, ctx.weights, ctx.engine, ctx.shape = blocks, weights, engine, tokens_BND.shape
        # The backward reads parameters; saving them makes autograd notice a change in between.
        ctx.save_for_backward(*learnt)
        training = grad_enabled and any(ctx.needs_input_grad)
        num_images, _, width = tokens_BND.shape
        ctx.saved = []
        x_MD, y_MD, bias_D = tokens_BND.reshape(-1, width).contiguous(), None, None
        for block in blocks:
            last = {"first_token_only": True} if first_token_only and block is blocks[-1] else {}
            x_MD, y_MD, saved = engine.forward(block, weights, num_images, x_MD, y_MD, bias_D, training, **last)
            ctx.saved.append(saved)
            bias_D = block.mlp.fc2.bias
        assert y_MD is not None, "no blocks"
        return passes.residual_sum(x_MD, y_MD, bias_D).view(num_images, -1, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BQD):
        _ = ctx.saved_tensors
        if not ctx.saved:
            raise RuntimeError("the native blocks keep nothing for a second backward pass: run the forward pass again")
        wanted = iter(ctx.needs_input_grad[6:])
        wants = [[next(wanted) for _ in parameters(block)] for block in ctx.blocks]
        # The stream's gradient is updated in place; the caller's stays what it was.
        grad_MD = grad_BQD.reshape(-1, ctx.shape[-1]).clone(memory_format=torch.contiguous_format)
        rounded_MD, bias_sum_D = passes.round_and_sum(grad_MD, ctx.weights.dtype)
        gradients: list[list[Tensor | None]] = []
        for block, want in zip(reversed(ctx.blocks), reversed(wants)):
            grad_MD, rounded_MD, bias_sum_D, mine = ctx.engine.backward(
                block, ctx.weights, ctx.shape[0], ctx.saved.pop(), grad_MD, rounded_MD, bias_sum_D
            )
            gradients.append(mine.of_parameters(block, want, ctx.engine.outer))
        flat = [g for mine in reversed(gradients) for g in mine]
        return grad_MD.view(ctx.shape), None, None, None, None, None, *flat
