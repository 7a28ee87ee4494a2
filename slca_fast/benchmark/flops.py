"""Counts the arithmetic of a call as it runs: matrix products and attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from slca_fast.kernels.vit_block import fused
from slca_fast.ops.lora_linear import lora_linear

Shape = tuple[int, ...]


def gflop_of(way: Callable[[], Any]) -> float:
    """GFLOP of one call's matrix products and attention, counted by torch and by the native library as they run.

    A product of M x K and K x N counts 2 M K N. torch takes an op of ours for a leaf without arithmetic: the products
    inside ``lora_linear`` are counted from its shapes.
    """
    before = fused.flops()
    with _uncompiled(), FlopCounterMode(display=False, custom_mapping=_ours()) as counter:
        way()
    return (counter.get_total_flops() + fused.flops() - before) / 1e9


def _ours() -> dict[Any, Callable[..., int]]:
    """What torch's counter does not know, by op."""
    one = torch.ones(1, 1)
    # The op is registered at its first call.
    lora_linear(one, one, None, one, one, 1.0)
    return {torch.ops.slca_fast.lora_linear: _lora_linear, torch.ops.slca_fast.lora_thin_products: _thin_products}


def _lora_linear(
    x: Shape, used_OI: Shape, bias: Shape | None, lora_A_RI: Shape, lora_B_OR: Shape, scale: float, is_merged: bool,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """The forward: x W'^T, and the two thin products where it is not merged. The backward's products are torch's."""
    thin = 0 if is_merged else prod(lora_A_RI) + prod(lora_B_OR)
    return 2 * prod(x[:-1]) * (prod(used_OI) + thin)


def _thin_products(grad_NO: Shape, u_NR: Shape, lora_B_OR: Shape, *_: Any, **__: Any) -> int:
    """g B and g^T u."""
    return 4 * prod(grad_NO) * lora_B_OR[1]


@contextmanager
def _uncompiled() -> Iterator[None]:
    """The counter sees single operators only."""
    was = torch._dynamo.config.disable
    torch._dynamo.config.disable = True
    try:
        yield
    finally:
        torch._dynamo.config.disable = was
