"""The backbone: a timm ViT as a feature extractor, computing as its ``Execution`` says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from slca_fast.errors import UserError
from slca_fast.model import class_token
from slca_fast.model.attention import attention_kernels
from slca_fast.model.cpu.stack import NativeBlocks
from slca_fast.model.fast_path import Execution, dtype_of, untouched, why_timm

# On the CPU a batch passes in parts of about so many numbers per thread between two blocks (64 images of 65 tokens, 192
# wide): what the backward pass keeps stays below a gigabyte per thread, and memory is reused instead of asked for anew.
PART_NUMBERS = 64 * 65 * 192


class Backbone(nn.Module):
    """A timm vision transformer without its head: images ``[B, 3, S, S]`` -> features ``[B, feature_dim]``.

    Features are the class token (or the pooled tokens, for models that pool so) after the final norm.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        # Or another of timm's transformers: they share what is used here.
        self.vit = cast(VisionTransformer, vit)
        self.execution = untouched(vit)
        """What ``use`` was given."""
        self._native: NativeBlocks | None = None
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._num_rows: dict[bool, int] = {}

    @property
    def feature_dim(self) -> int:
        return self.vit.num_features

    def forward(self, images: Tensor) -> Tensor:
        with attention_kernels(self.execution.attention):
            if self._compiled is None:
                if torch.is_grad_enabled():
                    return self._features(images)
                return torch.cat([self._features(part) for part in images.split(self.part_size(len(images)))])
            # One shape for every batch: a ragged one is padded with rows that nobody reads, so their gradient is 0.
            missing = self._num_rows[self.training] - len(images)
            if missing < 0:
                return self._features(images)
            padded = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
            return self._compiled(padded)[: len(images)]

    def use(self, execution: Execution, *, num_training: int = 0, num_evaluation: int = 0) -> None:
        """Computes as ``execution`` says from now on.

        Where that is compiled, forward (and backward) are compiled at the next call, for batches of up to so many
        images. Heads stay outside, so a new head recompiles nothing. Raises UserError for native blocks that this
        machine does not have: another rank chose them.
        """
        self._native = None
        if execution.blocks != "timm":
            if reason := why_timm(self.vit, execution.attention):
                raise UserError(
                    f"rank 0 computes blocks by {execution.blocks}, which this rank cannot ({reason}): start all ranks "
                    "on one kind of machine with one installation"
                )
            products = "native" if execution.blocks == "native products" else "torch"
            self._native = NativeBlocks(dtype_of(execution.precision), products)
        class_token.set_attention(self.vit, execution.attention)
        assert not execution.compiled or (num_training > 0 and num_evaluation > 0)
        self._compiled = torch.compile(self._features, dynamic=False) if execution.compiled else None
        self._num_rows = {True: num_training, False: num_evaluation}
        self.execution = execution

    def part_size(self, num_images: int) -> int:
        """How many of ``num_images`` to pass at once, forward and backward; at least 1."""
        if self._native is None:
            return max(1, num_images)
        num_tokens = self.vit.patch_embed.num_patches + self.vit.num_prefix_tokens
        return max(1, PART_NUMBERS * torch.get_num_threads() // (num_tokens * self.vit.embed_dim))

    def unchanged(self) -> AbstractContextManager:
        """To be entered around several passes without a change of parameters in between."""
        return nullcontext() if self._native is None else self._native.keeping_weights()

    def warm_up(self, image_size: int, precision: str) -> None:
        """Compiles now, for training and for evaluation, on black images; leaves no gradient and no random number."""
        device = next(self.parameters()).device
        was_training = self.training
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for training in (True, False):
                self.train(training)
                images = torch.zeros(self._num_rows[training], 3, image_size, image_size, device=device)
                with autocast(precision, device), torch.set_grad_enabled(training):
                    features = self(images)
                if features.requires_grad:
                    features.sum().backward()
        self.zero_grad(set_to_none=True)
        self.train(was_training)

    def _features(self, images: Tensor) -> Tensor:
        if self.execution.last_block == "all tokens":
            return class_token.plain_features(self.vit, images)
        run = class_token.first_token if self._native is None else self._native.first_token
        return class_token.class_token_features(self.vit, images, run)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """bf16 autocast on ``device`` for precision "bf16"; nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
