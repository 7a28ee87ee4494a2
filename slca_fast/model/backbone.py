"""The pre-trained backbone: a timm ViT as a feature extractor, and which of its parameters learn."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import timm
import torch
from torch import Tensor, nn

from slca_fast.config import ModelConfig
from slca_fast.embedded import embedded_weights_path
from slca_fast.errors import UserError
from slca_fast.model import class_token
from slca_fast.model.attention import AttentionChoice, choose_attention
from slca_fast.model.cpu import stack as cpu_stack
from slca_fast.model.lora import apply_lora
from slca_fast.model.weights import load_checkpoint

# method: hybrid slow learner = every backbone parameter with one of these in its name, plus LoRA.
HYBRID_NAMES = ("norm", "bias", "cls_token", "lora_A", "lora_B")
# On the CPU a batch passes in parts of about so many numbers per thread between two blocks (64 images of 65 tokens, 192
# wide): what the backward pass keeps stays below a gigabyte per thread, and memory is reused instead of asked for anew.
PART_NUMBERS = 64 * 65 * 192


class Backbone(nn.Module):
    """A timm vision transformer without its head: images ``[B, 3, S, S]`` -> features ``[B, feature_dim]``.

    Features are the class token (or the pooled tokens, for models that pool so) after the final norm.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.plain_reason = class_token.why_not(vit)
        """Why timm's own forward runs instead of the one with a class-token-only last block; None if it does not."""
        self.attention = AttentionChoice("sdpa", "torch's default")
        self.native_blocks: cpu_stack.NativeBlocks | None = None
        """Runs the blocks where ``use_native_blocks`` found that it can."""
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._num_rows: dict[bool, int] = {}

    @property
    def feature_dim(self) -> int:
        return self.vit.num_features

    def forward(self, images: Tensor) -> Tensor:
        with self.attention.context():
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

    def use_attention(self, choice: AttentionChoice) -> None:
        """Makes every attention layer compute as chosen."""
        choice.applied_to(self.vit)
        self.attention = choice

    def use_fast_path(self, precision: str, num_images: int, requested: str = "auto") -> str | None:
        """Chooses attention for batches of ``num_images`` and native blocks where they serve; why they do not."""
        device, native = next(self.parameters()).device, self.why_no_native_blocks("bmm") is None
        self.use_attention(choose_attention(self.vit, device, precision, num_images, requested, native))
        return self.use_native_blocks(precision)

    def use_native_blocks(self, precision: str, own_products: bool = True) -> str | None:
        """Makes the blocks run by the native library in precision "fp32" or "bf16", attention as "bmm".

        Its passes serve with torch's products too, where those are faster or ``own_products`` are not wanted. Returns
        why not, and leaves the blocks to timm, for a model, device or attention that it cannot serve.
        """
        self.native_blocks, reason = None, self.why_no_native_blocks(self.attention.name)
        if reason is None:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            why_torch = cpu_stack.why_torch_multiplies(self.vit.blocks, dtype)
            products = "native" if own_products and why_torch is None else "torch"
            self.native_blocks = cpu_stack.NativeBlocks(dtype, products)
        return reason

    @property
    def blocks_by(self) -> str:
        """Who computes the blocks: "native products", "native passes" (between torch's products) or "timm"."""
        if self.native_blocks is None:
            return "timm"
        return "native products" if self.native_blocks.products == "native" else "native passes"

    def why_no_native_blocks(self, attention: str) -> str | None:
        """Why ``use_native_blocks`` cannot serve this model with this attention; None if it can."""
        if self.plain_reason is not None:
            return self.plain_reason
        if attention != "bmm":
            return f"attention is {attention}, and they know bmm alone"
        return cpu_stack.why_not(self.vit.blocks)

    def part_size(self, num_images: int) -> int:
        """How many of ``num_images`` to pass at once, forward and backward; at least 1."""
        if self.native_blocks is None:
            return max(1, num_images)
        num_tokens = self.vit.patch_embed.num_patches + self.vit.num_prefix_tokens
        return max(1, PART_NUMBERS * torch.get_num_threads() // (num_tokens * self.vit.embed_dim))

    def unchanged(self) -> AbstractContextManager:
        """To be entered around several passes without a change of parameters in between."""
        return nullcontext() if self.native_blocks is None else self.native_blocks.keeping_weights()

    def use_compiler(self, num_training: int, num_evaluation: int) -> None:
        """Compiles the forward pass (and its backward) at its next call, for batches of up to so many images.

        Heads stay outside, so a new head recompiles nothing.
        """
        self._compiled = torch.compile(self._features, dynamic=False)
        self._num_rows = {True: num_training, False: num_evaluation}

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
        if self.plain_reason is None:
            run = class_token.first_token if self.native_blocks is None else self.native_blocks.first_token
            return class_token.class_token_features(self.vit, images, run)
        return class_token.plain_features(self.vit, images)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """bf16 autocast on ``device`` for precision "bf16"; nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def build_backbone(config: ModelConfig, image_size: int, seed: int) -> Backbone:
    """The backbone of a run on the CPU in fp32, with pre-trained weights, fresh final norm, LoRA and frozen parts.

    ``seed`` decides weights that no checkpoint gives. Raises UserError for an unknown model, arguments or weights
    that do not fit, and for weights that cannot be downloaded.
    """
    vit = _create(config, image_size, seed)
    if config.checkpoint is not None:
        path = embedded_weights_path() if config.checkpoint == "embedded" else config.checkpoint
        load_checkpoint(vit, path)
    if config.reset_final_norm:
        reset_final_norm(vit)
    if config.lora.rank > 0:
        try:
            apply_lora(vit, config.lora.rank, config.lora.scale, config.lora.targets)
        except ValueError as error:
            raise UserError(f"--model.lora: {error}") from error
    freeze_backbone(vit, config.trainable)
    return Backbone(vit)


def freeze_backbone(vit: nn.Module, trainable: str) -> None:
    """Sets ``requires_grad`` of every parameter for "full", "hybrid" or "head"."""
    for name, parameter in vit.named_parameters():
        if trainable == "hybrid":
            parameter.requires_grad_(any(part in name for part in HYBRID_NAMES))
        else:
            parameter.requires_grad_(trainable == "full")


def reset_final_norm(vit: nn.Module) -> None:
    """Replaces the final norm by a fresh LayerNorm with eps 1e-5, as the official code does for every backbone."""
    name = "norm" if not isinstance(getattr(vit, "norm", None), nn.Identity | None) else "fc_norm"
    if isinstance(getattr(vit, name, None), nn.Identity | None):
        raise UserError("--model.reset_final_norm true: the model has no final norm to reset; set it to false")
    setattr(vit, name, nn.LayerNorm(vit.num_features, eps=1e-5))


def _create(config: ModelConfig, image_size: int, seed: int) -> nn.Module:
    if config.name.split(".")[0] not in timm.list_models():
        close = difflib.get_close_matches(config.name.split(".")[0], timm.list_models(), 1)
        hint = f"; did you mean {close[0]}?" if close else "; see timm.list_models()"
        raise UserError(f"--model.name {config.name}: timm has no such model{hint}")
    kwargs: dict[str, Any] = {"img_size": image_size, **config.kwargs}
    if kwargs["img_size"] not in (image_size, [image_size, image_size], (image_size, image_size)):
        raise UserError(f"--model.kwargs img_size {kwargs['img_size']} differs from --data.image_size {image_size}")
    download = config.pretrained and config.checkpoint is None
    # Fresh weights come from the seed alone; the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            vit = timm.create_model(config.name, pretrained=download, num_classes=0, **kwargs)
        except TypeError as error:
            # Other families refuse img_size or the arguments of a ViT: the name is to blame, not they.
            with torch.device("meta"):
                _require_vision_transformer(timm.create_model(config.name, num_classes=0), config.name)
            raise UserError(f"--model.kwargs {config.kwargs}: {error}") from error
        except (AssertionError, ValueError) as error:
            raise UserError(f"--model.kwargs {config.kwargs} with --data.image_size {image_size}: {error}") from error
        except Exception as error:
            if not download:
                raise
            raise UserError(
                f"--model.pretrained true: the weights of {config.name} could not be downloaded "
                f"({type(error).__name__}); give a local file with --model.checkpoint, or --model.pretrained false"
            ) from error
    _require_vision_transformer(vit, config.name)
    return vit


def _require_vision_transformer(model: nn.Module, name: str) -> None:
    if not hasattr(model, "forward_head") or not hasattr(model, "embed_dim"):
        raise UserError(f"--model.name {name}: not a vision transformer")
