"""What fused and composed blocks share: matrices at hand, and gradients of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from timm.layers import Attention
from torch import Tensor, nn

from slca_fast.kernels.lora_linear.native_kernel import thin_products
from slca_fast.kernels.lora_linear.reference import merged_weight
from slca_fast.model.lora import LoraLinear


class PlainMlp(Protocol):
    """timm's Mlp with linear layers."""

    fc1: nn.Linear
    fc2: nn.Linear


class PlainBlock(Protocol):
    """timm's Block as ``stack.why_not`` accepts it; timm declares its parts as any modules."""

    norm1: nn.LayerNorm
    attn: Attention
    norm2: nn.LayerNorm
    mlp: PlainMlp


class Weights:
    """The matrices of linear layers in the dtype of the products, LoRA merged; made at their first use."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._of: dict[nn.Linear, Tensor] = {}
        self._packed: dict[tuple[nn.Linear, bool], Tensor] = {}

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

    def packed(self, linear: nn.Linear, transposed: bool, pack: Callable[[Tensor, bool], Tensor]) -> Tensor:
        """``pack(weight, transposed)``."""
        if (linear, transposed) not in self._packed:
            self._packed[linear, transposed] = pack(self.of(linear), transposed)
        return self._packed[linear, transposed]


@dataclass
class Through:
    """What reached the parameters of one layer: its input and the gradient of its output, ``[rows, ...]``."""

    x_MI: Tensor
    grad_MO: Tensor
    bias_sum_O: Tensor
    """The sum of ``grad_MO`` over rows, float32."""


@dataclass
class BlockGradients:
    """What one block's backward pass leaves for the gradients of its parameters."""

    norm1: Sequence[Tensor]
    """Of weight and bias."""
    qkv: Through
    proj: Through
    norm2: Sequence[Tensor]
    fc1: Through
    fc2: Through

    def of_parameters(
        self, block: PlainBlock, want: Sequence[bool], outer: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor | None]:
        """In the order of ``parameters``, float32, None where ``want`` is False; ``outer(g, x)`` is g^T x."""
        wanted = iter(want)
        found: list[Tensor | None] = []
        for layer, through in zip(
            _layers(block), (self.norm1, self.qkv, self.proj, self.norm2, self.fc1, self.fc2), strict=True
        ):
            mine = [next(wanted) for _ in _of_layer(layer)]
            if isinstance(through, Through):
                assert isinstance(layer, nn.Linear)
                found += _of_linear(layer, through, mine, outer)
            else:
                found += [total if wish else None for total, wish in zip(through, mine, strict=True)]
        return found


def parameters(block: PlainBlock) -> list[nn.Parameter]:
    """Those that a plain block with linear layers or LoRA has."""
    return [p for layer in _layers(block) for p in _of_layer(layer)]


def linears(block: PlainBlock) -> dict[str, nn.Linear]:
    """The block's matrices by their name in timm."""
    return {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}


def _of_linear(linear: nn.Linear, t: Through, want: Sequence[bool], outer) -> list[Tensor | None]:
    found = [outer(t.grad_MO, t.x_MI) if want[0] else None, t.bias_sum_O if want[1] else None]
    if isinstance(linear, LoraLinear):
        A, B = linear.lora_A.to(t.x_MI.dtype), linear.lora_B.to(t.x_MI.dtype)
        through_MR, both_OS = thin_products(t.grad_MO, t.x_MI @ A.T, B)
        found.append(linear.scale * outer(through_MR.to(t.x_MI.dtype), t.x_MI) if want[2] else None)
        found.append((linear.scale * both_OS[:, :-1]).float() if want[3] else None)
    return found


def _layers(block: PlainBlock) -> tuple[nn.LayerNorm | nn.Linear, ...]:
    return block.norm1, block.attn.qkv, block.attn.proj, block.norm2, block.mlp.fc1, block.mlp.fc2


def _of_layer(layer: nn.LayerNorm | nn.Linear) -> list[nn.Parameter]:
    found = [layer.weight, layer.bias]
    return [*found, layer.lora_A, layer.lora_B] if isinstance(layer, LoraLinear) else found
