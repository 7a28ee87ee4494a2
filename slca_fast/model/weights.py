"""Reading pre-trained ViT weights: safetensors, Google's .npz and .pth files with their various prefixes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from slca_fast.errors import UserError

OPTION = "--model.checkpoint"
# A classifier or projector on top of the features is not part of the backbone.
HEAD_PREFIXES = ("head.", "head_dist.", "fc.", "pre_logits.", "projector.", "predictor.")
# Wrappers of other code bases around the backbone's names (DataParallel, MoCo v3, common trainers).
WRAPPERS = ("_orig_mod.", "module.", "base_encoder.", "backbone.", "model.", "vit.")
# Other parts of a pre-training: heads, decoders, masks, a text tower.
NOT_BACKBONE = (
    *HEAD_PREFIXES,
    *("decoder", "mask_token", "teacher.", "dino_head", "ibot_head"),
    *("text", "logit_scale", "logit_bias", "token_embedding", "transformer.", "positional_embedding", "ln_final"),
    "visual.",
)


def load_checkpoint(vit: nn.Module, path: str | Path, report: Callable[[str], None] = lambda text: None) -> None:
    """Loads ``path`` into a timm vision transformer without a classification head, in place.

    Accepts .safetensors, Google's .npz, and .pth/.pt/.bin (read with ``weights_only=True``, never unpickled freely);
    ``module.`` and ``base_encoder.`` prefixes (MoCo v3) are stripped, momentum encoder, heads, decoders and text tower
    are ignored; patch kernels and position embeddings are resampled to the model's, which ``report`` is told. Raises
    UserError when the file cannot be read, does not fit the model, or holds weights that the model has no place for.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{OPTION} {path}: no such file")
    if path.suffix == ".npz":
        _load_npz(vit, path)
        return
    state = strip_prefixes(_read(path))
    _require_same_width(vit, state, path)
    wanted, sizes = vit.state_dict(), {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        state = checkpoint_filter_fn(state, cast(VisionTransformer, vit))
    except Exception as error:
        # timm's filters expect tensors of certain shapes and fail in their own ways on others.
        tokens = f"its position embedding is {list(sizes['pos_embed'])}" if "pos_embed" in sizes else "its layout"
        raise UserError(
            f"{OPTION} {path}: {tokens}, which cannot be brought to the tokens of --model.name ({_first_line(error)}); "
            f"choose the --model.name and --model.kwargs that the weights belong to"
        ) from error
    for name, tensor in state.items():
        if name in wanted and wanted[name].shape != tensor.shape:
            raise UserError(
                f"{OPTION} {path}: {name} is {list(tensor.shape)} but --model.name needs "
                f"{list(wanted[name].shape)}; choose the model that the weights belong to"
            )
    missing = [name for name in wanted if name not in state]
    if missing:
        raise UserError(
            f"{OPTION} {path}: {len(missing)} of {len(wanted)} weights are missing (first: {missing[0]}); "
            f"choose the --model.name and --model.kwargs that the weights belong to"
        )
    homeless = [name for name in state if name not in wanted and not name.startswith(NOT_BACKBONE)]
    if homeless:
        raise UserError(
            f"{OPTION} {path}: the model has no place for {len(homeless)} of its weights (first: {homeless[0]}), and "
            f"without them its features would be others; choose the --model.name and --model.kwargs they belong to"
        )
    for name, what in (("patch_embed.proj.weight", "patch kernel"), ("pos_embed", "position embedding")):
        if name in sizes and sizes[name] != tuple(wanted[name].shape):
            before, after = (_extent(shape) for shape in (sizes[name], tuple(wanted[name].shape)))
            report(f"{OPTION} {path}: {what} resampled from {before} to {after}")
    vit.load_state_dict({name: state[name].to(wanted[name].dtype) for name in wanted})


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights of ``state`` under timm's names, without wrappers, heads or a momentum encoder."""
    stripped = {}
    for name, tensor in state.items():
        # Other encoders and heads (MoCo's predictor) are dropped before their wrapper hides them.
        bare = name.removeprefix("module.")
        if bare.startswith("momentum_encoder."):
            continue
        while any(bare.startswith(wrapper) for wrapper in WRAPPERS):
            bare = bare.removeprefix(next(w for w in WRAPPERS if bare.startswith(w)))
        if not bare.startswith(HEAD_PREFIXES):
            stripped[bare] = tensor
    return stripped


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{OPTION} {path}: not a readable checkpoint ({_first_line(error)})") from error
    except Exception as error:
        # weights_only refuses arbitrary objects with an UnpicklingError; loading them unsafely is no option.
        raise UserError(
            f"{OPTION} {path}: damaged, or it holds more than plain tensors and is not loaded for safety; save its "
            f"state_dict as .safetensors"
        ) from error
    for key in ("state_dict", "model", "module", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    items = state.items() if isinstance(state, dict) else ()
    tensors = {name: tensor for name, tensor in items if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not tensors:
        raise UserError(f"{OPTION} {path}: no weights found in it")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
            raise UserError(f"{OPTION} {path}: {name} is no dense array of real numbers; save its state_dict so")
    return tensors


def _load_npz(vit: nn.Module, path: Path) -> None:
    load = getattr(vit, "load_pretrained", None)
    if load is None:
        raise UserError(f"{OPTION} {path}: --model.name has no .npz weights; give .safetensors or .pth")
    try:
        load(str(path))
    except Exception as error:
        # timm reads the file without a check: a damaged one or other arrays fail anywhere.
        raise UserError(f"{OPTION} {path}: does not fit --model.name ({_first_line(error)})") from error


def _require_same_width(vit: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    token = next((state[name] for name in ("cls_token", "pos_embed", "norm.weight") if name in state), None)
    if token is not None and token.shape[-1:] != (vit.embed_dim,):
        width = token.shape[-1] if token.ndim else 0
        raise UserError(
            f"{OPTION} {path}: its width is {width} but --model.name has width {vit.embed_dim}; "
            f"choose the model that the weights belong to"
        )


def _extent(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}x{shape[-1]} px" if len(shape) == 4 else f"{shape[-2]} tokens"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
