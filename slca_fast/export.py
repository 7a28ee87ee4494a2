"""A run's backbone for other code: plain timm weights, or LoRA as a PEFT adapter.

The model that is exported stays as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from slca_fast import files
from slca_fast.errors import UserError
from slca_fast.model.class_token import plain_features
from slca_fast.model.head import LinearClassifier
from slca_fast.model.lora import TARGET_PATHS, lora_layers, merged_state
from slca_fast.runs.trained import TrainedModel

LOGIT_ERROR = 1e-4
"""Largest difference from timm's logits, relative to the largest: what another order of float32 sums explains."""


def export_timm(model: TrainedModel, folder: Path) -> list[Path]:
    """Writes ``model.safetensors`` (LoRA merged, the aligned classifier as timm's head) and ``config.json``.

    ``timm.create_model(architecture, num_classes=n, **kwargs)`` loads it strictly: row i of the head is ``classes[i]``.
    timm takes the eps of the final norm from the architecture: set ``vit.norm.eps`` (``vit.fc_norm.eps`` for models
    that pool) to ``final_norm_eps`` after loading, as the config's ``load`` says. It also says how images are
    normalised. Raises UserError for a domain-incremental run, a classifier that is not linear, and a model that plain
    timm does not load to the same logits.
    """
    if model.plan.scenario != "cil":
        raise UserError(
            "--format timm: a domain-incremental run has one head per domain, timm has one head; "
            "export class-incremental runs"
        )
    head = model.classifier.linear()
    if head is None:
        raise UserError(f"--format timm: the classifier of method {model.config.method} is not linear, timm's head is")
    vit = model.backbone.vit
    state = {name: tensor.cpu().contiguous() for name, tensor in merged_state(vit).items()}
    # A distilled model takes the mean of two heads on two tokens: equal ones are ours on the mean token.
    for name in ("head", *(["head_dist"] if hasattr(vit, "head_dist") else [])):
        state[f"{name}.weight"] = head.weight_CD.cpu().contiguous()
        state[f"{name}.bias"] = head.bias_C.cpu().contiguous()
    data = model.config.data
    norm_name = "norm" if hasattr(vit.norm, "eps") else "fc_norm"
    final_norm = getattr(vit, norm_name)
    config = {
        "architecture": model.config.model.name.split(".")[0],
        "kwargs": {"img_size": data.image_size, **model.config.model.kwargs},
        "num_classes": len(state["head.bias"]),
        "final_norm_eps": final_norm.eps,
        "load": "vit = timm.create_model(architecture, num_classes=num_classes, **kwargs); "
        f"vit.load_state_dict(model.safetensors); vit.{norm_name}.eps = final_norm_eps",
        "classes": [model.name_of(i) for i in range(len(state["head.bias"]))],
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "recipe": data.recipe,
    }
    _require_same_logits(model, head, state, config, norm_name)
    return _write(folder, {"model.safetensors": save(state), "config.json": _json(config)})


def _require_same_logits(
    model: TrainedModel, head: LinearClassifier, state: dict[str, Tensor], config: dict[str, Any], norm_name: str
) -> None:
    """Raises UserError unless plain timm loads ``state`` and gives the run's logits (``head`` on its features)."""
    plain = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["kwargs"]).eval()
    try:
        plain.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    except RuntimeError as error:
        raise UserError(
            f"--format timm: plain timm cannot load this run's {model.config.model.name} "
            f"({' '.join(str(error).split())[:200]}); train with --model.reset_final_norm false"
        ) from error
    getattr(plain, norm_name).eps = config["final_norm_eps"]
    size, device = model.config.data.image_size, model.device
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = head.scores(plain_features(model.backbone.vit, images.to(device)).float()).cpu()
        difference = (plain(images) - expected).abs().max().item()
    if not difference <= LOGIT_ERROR * max(1.0, expected.abs().max().item()):
        raise UserError(
            f"--format timm: plain timm gives other logits than the run (by {difference:.2g}): its "
            f"{model.config.model.name} computes its features in another way"
        )


def export_peft(model: TrainedModel, folder: Path) -> list[Path]:
    """Writes the LoRA factors as a PEFT adapter (``adapter_model.safetensors`` and ``adapter_config.json``).

    Norms, biases, class token and heads, which learn too, are not part of a PEFT LoRA adapter: export timm for all.
    Raises UserError for a run without LoRA.
    """
    layers = list(lora_layers(model.backbone.vit))
    if not layers:
        raise UserError("--format peft: the run has no LoRA (model.lora.rank is 0); use --format timm")
    tensors: dict[str, Tensor] = {}
    for name, layer in layers:
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    lora = model.config.model.lora
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": model.config.model.name,
        "r": lora.rank,
        # PEFT scales by lora_alpha / r.
        "lora_alpha": lora.scale * lora.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": [TARGET_PATHS[target] for target in lora.targets],
        "inference_mode": True,
    }
    return _write(folder, {"adapter_model.safetensors": save(tensors), "adapter_config.json": _json(config)})


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _write(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--to {folder} is not empty: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        files.write_durably(folder / name, data)
    return [folder / name for name in contents]
