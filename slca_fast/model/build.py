"""Makes a run's backbone: the timm model with its weights, final norm and LoRA, and which parameters learn."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import nn

from slca_fast.config import ModelConfig
from slca_fast.embedded import embedded_weights_path
from slca_fast.errors import UserError, did_you_mean
from slca_fast.model.backbone import Backbone
from slca_fast.model.class_token import plain_features
from slca_fast.model.hub import at_once_when_offline
from slca_fast.model.lora import apply_lora
from slca_fast.model.weights import load_checkpoint
from slca_fast.seeds import weights_key

# method: hybrid slow learner = every backbone parameter with one of these in its name, plus LoRA.
HYBRID_NAMES = ("norm", "bias", "cls_token", "lora_A", "lora_B")


def build_backbone(
    config: ModelConfig, image_size: int, seed: int, report: Callable[[str], None] = lambda text: None
) -> Backbone:
    """The backbone of a run on the CPU in fp32, with pre-trained weights, fresh final norm, LoRA and frozen parts.

    ``seed`` decides weights that no checkpoint gives; ``report`` is told what had to be resampled. Raises UserError for
    an unknown model, arguments or weights that do not fit, and for weights that cannot be downloaded.
    """
    vit = _create(config, image_size, seed)
    if config.checkpoint is not None:
        path = embedded_weights_path() if config.checkpoint == "embedded" else config.checkpoint
        load_checkpoint(vit, path, report)
    if config.reset_final_norm:
        reset_final_norm(vit)
    if config.lora.rank > 0:
        try:
            apply_lora(vit, config.lora.rank, config.lora.scale, config.lora.targets)
        except ValueError as error:
            raise UserError(f"--model.lora: {error}") from error
    freeze_backbone(vit, config.trainable)
    freeze_unused(vit, config, image_size)
    return Backbone(vit)


def freeze_backbone(vit: nn.Module, trainable: str) -> None:
    """Sets ``requires_grad`` of every parameter for "full", "hybrid" or "head"."""
    for name, parameter in vit.named_parameters():
        if trainable == "hybrid":
            parameter.requires_grad_(any(part in name for part in HYBRID_NAMES))
        else:
            parameter.requires_grad_(trainable == "full")


def freeze_unused(vit: nn.Module, config: ModelConfig, image_size: int) -> None:
    """Tries ``vit`` on one black image: parameters that no gradient reaches are frozen, they could not learn.

    Raises UserError for a model that fails on it, or whose LoRA the forward pass goes around (attention that multiplies
    by ``qkv.weight`` itself, as BEiT's does).
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        was_training = vit.training
        try:
            features = plain_features(vit.eval(), torch.zeros(1, 3, image_size, image_size))
        except Exception as error:
            # timm's families fail in their own ways on an image that they cannot take.
            raise UserError(
                f"--model.name {config.name} with --model.kwargs {config.kwargs}: it cannot take an RGB image of "
                f"{image_size} px ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            ) from error
        finally:
            vit.train(was_training)
        if features.shape != (1, vit.num_features):
            raise UserError(
                f"--model.name {config.name} with --model.kwargs {config.kwargs}: an image gives "
                f"{list(features.shape)}, not one feature vector of {vit.num_features}; it cannot serve as a backbone"
            )
        if not features.isfinite().all():
            raise UserError(
                f"--model.name {config.name} with --model.kwargs {config.kwargs} and --model.checkpoint "
                f"{config.checkpoint}: an image gives features that are not finite numbers"
            )
        if features.requires_grad:
            features.sum().backward()
    unused = [name for name, p in vit.named_parameters() if p.requires_grad and p.grad is None]
    vit.zero_grad(set_to_none=True)
    if bypassed := [name for name in unused if name.endswith(("lora_A", "lora_B"))]:
        raise UserError(
            f"--model.lora: the attention of {config.name} goes around its layers, so that LoRA would learn nothing "
            f"({bypassed[0]}): choose other --model.lora.targets, or --model.lora.rank 0"
        )
    for name in unused:
        vit.get_parameter(name).requires_grad_(False)


def reset_final_norm(vit: nn.Module) -> None:
    """Replaces the final norm by a fresh LayerNorm with eps 1e-5, as the official code does for every backbone."""
    name = "norm" if not isinstance(getattr(vit, "norm", None), nn.Identity | None) else "fc_norm"
    if isinstance(getattr(vit, name, None), nn.Identity | None):
        raise UserError("--model.reset_final_norm true: the model has no final norm to reset; set it to false")
    num_features = vit.num_features
    assert isinstance(num_features, int)
    setattr(vit, name, nn.LayerNorm(num_features, eps=1e-5))


def _create(config: ModelConfig, image_size: int, seed: int) -> nn.Module:
    _require_known(config.name)
    kwargs: dict[str, Any] = {"img_size": image_size, **config.kwargs}
    if kwargs["img_size"] not in (image_size, [image_size, image_size], (image_size, image_size)):
        raise UserError(f"--model.kwargs img_size {kwargs['img_size']} differs from --data.image_size {image_size}")
    download = config.pretrained and config.checkpoint is None
    # Fresh weights come from the seed alone; the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_key(seed))
        try:
            with at_once_when_offline() if download else nullcontext():
                vit = timm.create_model(config.name, pretrained=download, num_classes=0, **kwargs)
        except TypeError as error:
            # Other families refuse img_size or the arguments of a ViT: the name is to blame, not they.
            with torch.device("meta"):
                _require_vision_transformer(timm.create_model(config.name, num_classes=0), config.name)
            raise UserError(f"--model.kwargs {config.kwargs}: {error}") from error
        except Exception as error:
            # timm checks few of a model's arguments, so what fails for wrong ones can be of any type.
            if not download or _fails(config.name, kwargs):
                what = f"--model.kwargs {config.kwargs} with --data.image_size {image_size}"
                raise UserError(f"{what}: {type(error).__name__}: {error}") from error
            raise UserError(
                f"--model.pretrained true: the weights of {config.name} could not be downloaded "
                f"({type(error).__name__}); give a local file with --model.checkpoint, or --model.pretrained false"
            ) from error
    _require_vision_transformer(vit, config.name)
    _require_flags(vit, config.kwargs)
    return vit


def _require_known(name: str) -> None:
    """Raises UserError for a model or a tag of pre-trained weights that timm does not have."""
    model, dot, tag = name.partition(".")
    if model not in timm.list_models():
        hint = did_you_mean(model, timm.list_models()) or "; see timm.list_models()"
        raise UserError(f"--model.name {name}: timm has no such model{hint}")
    if not dot:
        return
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
        raise UserError(
            f"--model.name {name}: timm has no weights {tag!r} of {model}; it has {', '.join(tags) or 'none'}"
        ) from None


def _require_flags(vit: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raises UserError for a word or number where the model's class takes true or false: any would count as true."""
    parameters = inspect.signature(type(vit).__init__).parameters
    for name, value in kwargs.items():
        kinds = (
            {parameters[name].annotation, *typing.get_args(parameters[name].annotation)} if name in parameters else ()
        )
        if bool in kinds and str not in kinds and not isinstance(value, bool | None):
            raise UserError(f"--model.kwargs.{name} is {value!r}: give true or false")


def _fails(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the model cannot even be made without pre-trained weights."""
    try:
        timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    except Exception:
        return True
    return False


def _require_vision_transformer(model: nn.Module, name: str) -> None:
    if not hasattr(model, "forward_head") or not hasattr(model, "embed_dim"):
        raise UserError(f"--model.name {name}: not a vision transformer")
