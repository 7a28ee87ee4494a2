"""How a model computes, as one value: attention, transformer blocks, last block, compiler.

``choose`` decides, ``Backbone.use`` obeys, and nobody else does either. Every way computes the same function; they
differ in speed and in the last bits, so a resumed run goes on with what it began with (``Remembered``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from slca_fast.model import class_token
from slca_fast.model.attention import CANDIDATES, choose_attention
from slca_fast.model.cpu import stack as cpu_stack

BLOCKS = ("native products", "native passes", "timm")
AS_BEGUN = "as the run began"


@dataclass(frozen=True)
class Execution:
    """How a model computes: one value, chosen once by ``choose``, written into checkpoints and summaries."""

    precision: str
    """"fp32" or "bf16"."""
    attention: str
    """"sdpa", "bmm", "cudnn" or "flash"."""
    blocks: str
    """Who computes them: "native products", "native passes" (between torch's products) or "timm"."""
    last_block: str
    """"class token" (computed for that token alone) or "all tokens" (timm's own forward)."""
    compiled: bool
    reasons: dict[str, str]
    """Why, in words: "attention", "last block", "blocks" and "compile"."""

    def __post_init__(self) -> None:
        assert self.blocks in BLOCKS, self.blocks
        natively = self.attention == "bmm" and self.last_block == "class token" and not self.compiled
        assert self.blocks == "timm" or natively, self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Execution:
        """The inverse of ``to_dict``."""
        return Execution(**values)

    def backends(self) -> dict[str, str]:
        """The entries of summary.json's ``backends``; ``reasons`` has those of its ``backend_reasons``."""
        return {
            "attention": self.attention,
            "last block": self.last_block,
            "blocks": self.blocks,
            "compile": "torch.compile" if self.compiled else "off",
        }


@dataclass(frozen=True)
class Remembered:
    """What a checkpoint recorded of its run's execution; None where an older one did not."""

    attention: str | None = None
    blocks: str | None = None

    def missing_in(self, execution: Execution) -> str | None:
        """What ``execution`` does not go on with, as a sentence for the user; None if nothing."""
        if self.blocks in (None, execution.blocks):
            return None
        return (
            f"the run began with blocks by {self.blocks}, which are missing here ({execution.reasons['blocks']}): the "
            "last bits of what follows may differ"
        )


def choose(
    vit: nn.Module,
    device: torch.device,
    precision: str,
    num_images: int | None,
    *,
    compiled: bool | None = False,
    attention: str = "auto",
    remembered: Remembered | None = None,
) -> Execution:
    """How ``vit``, whose parameters are on ``device``, computes batches of ``num_images`` (None: measures nothing).

    ``precision`` is "fp32" or "bf16". ``compiled`` None means on CUDA only, where it pays within a minute.
    ``attention`` other than "auto" is taken as it is. What is ``remembered`` is taken where this machine has it,
    except for an attention that was asked for; ``Remembered.missing_in`` says what could not be had.
    """
    began = remembered or Remembered()
    compile_reason = "on for CUDA, off on the CPU" if compiled is None else "asked for"
    compiled = device.type == "cuda" if compiled is None else compiled
    natively = not compiled and why_timm(vit, "bmm") is None
    picked = choose_attention(vit, device, precision, num_images, attention, natively)
    name, why = picked.name, picked.reason
    goes_on = attention == "auto" and began.attention in CANDIDATES[device.type]
    if goes_on and began.attention is not None and began.attention != name:
        name, why = began.attention, AS_BEGUN
    blocks, blocks_reason = _choose_blocks(vit, name, precision, compiled, began.blocks)
    last_block, last_reason = _last_block(vit)
    reasons = {"attention": why, "last block": last_reason, "blocks": blocks_reason, "compile": compile_reason}
    return Execution(precision, name, blocks, last_block, compiled, reasons)


def untouched(vit: nn.Module) -> Execution:
    """What a model computes by before anything is chosen: timm's blocks with torch's attention."""
    last_block, reason = _last_block(vit)
    reasons = {name: "torch's default" for name in ("attention", "blocks", "compile")} | {"last block": reason}
    return Execution("fp32", "sdpa", "timm", last_block, False, reasons)


def why_timm(vit: nn.Module, attention: str) -> str | None:
    """Why timm's modules compute the blocks with this attention; None if the native library can."""
    if reason := class_token.why_not(vit):
        return reason
    if attention != "bmm":
        return f"attention is {attention}, and they know bmm alone"
    assert isinstance(vit, VisionTransformer)
    return cpu_stack.why_not(vit.blocks)


def _last_block(vit: nn.Module) -> tuple[str, str]:
    reason = class_token.why_not(vit)
    return ("class token", "exact; the model reads only its class token") if reason is None else ("all tokens", reason)


def _choose_blocks(
    vit: nn.Module, attention: str, precision: str, compiled: bool, began: str | None
) -> tuple[str, str]:
    """Who computes the blocks, and why."""
    reason = "torch.compile makes the kernels" if compiled else why_timm(vit, attention)
    if reason is not None:
        return "timm", reason
    if began == "timm":
        return "timm", "the run began with timm's"
    assert isinstance(vit, VisionTransformer)
    why_torch = cpu_stack.why_torch_multiplies(vit.blocks, dtype_of(precision))
    if why_torch is None and began != "native passes":
        return "native products", "groups of images go through a block at once, products by the native library"
    return "native passes", f"one native pass between each two of torch's products: {why_torch or AS_BEGUN}"


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of matrix products in ``precision``."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
