"""Stage 1's optimizer: parameter groups of the slow learner, closed-form schedules, fused implementations."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slca_fast.config import OptimConfig


def slow_learner_param_groups(
    backbone: nn.Module,
    head_params: Iterable[nn.Parameter],
    *,
    lr: float = 0.01,
    backbone_lr_scale: float = 0.01,
    lora_lr_scale: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Optimizer groups of the slow learner (SLCA Sec. 4.1; SLCA++ for the LoRA group).

    The head learns with ``lr``, every trainable backbone parameter with ``lr * backbone_lr_scale``, and LoRA factors
    with ``lr * lora_lr_scale`` (default: as the backbone). The head may be part of ``backbone``, whose group then
    leaves it out. Frozen parameters and empty groups are left out. Each group has a ``name`` ("lora", "backbone",
    "head").
    """
    head = list(head_params)
    head_ids = {id(parameter) for parameter in head}
    lora, others = [], []
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and id(parameter) not in head_ids:
            (lora if name.rsplit(".", 1)[-1] in ("lora_A", "lora_B") else others).append(parameter)
    lora_scale = backbone_lr_scale if lora_lr_scale is None else lora_lr_scale
    groups = [
        {"name": "lora", "params": lora, "lr": lr * lora_scale},
        {"name": "backbone", "params": others, "lr": lr * backbone_lr_scale},
        {"name": "head", "params": [p for p in head if p.requires_grad], "lr": lr},
    ]
    return [{**group, "weight_decay": weight_decay} for group in groups if group["params"]]


def learning_rate(config: OptimConfig, base_lr: float, epoch: int) -> float:
    """Learning rate in epoch ``epoch`` (0-based) of a group that starts at ``base_lr``.

    A pure function of the epoch, so that nothing of a schedule needs saving. ``cosine`` uses one floor for all
    groups, ``lr * backbone_lr_scale * 0.1 ** len(milestones)``, as the official SLCA++ code does.
    """
    if config.schedule == "multistep":
        return base_lr * 0.1 ** sum(milestone <= epoch for milestone in config.milestones)
    if config.schedule == "cosine":
        floor = config.lr * config.backbone_lr_scale * 0.1 ** len(config.milestones)
        return cosine(base_lr, floor, epoch, config.epochs)
    return base_lr


def cosine(base_lr: float, floor: float, epoch: int, num_epochs: int) -> float:
    """Half a cosine from ``base_lr`` (epoch 0) to ``floor`` (epoch ``num_epochs``)."""
    return floor + (base_lr - floor) * (1 + math.cos(math.pi * epoch / num_epochs)) / 2


def make_optimizer(config: OptimConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """A fresh SGD or AdamW over ``groups``, fused where the device has it (NVIDIA apex first, when installed)."""
    cls, extra = optimizer_class(config.name, device)
    if config.name == "sgd":
        return cls(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, **extra)
    return cls(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, **extra)


def optimizer_class(name: str, device: torch.device) -> tuple[type[Any], dict[str, Any]]:
    """The torch.optim.Optimizer for ``name`` ("sgd", "adamw") on ``device`` and its implementation arguments."""
    if device.type == "cuda" and (apex := apex_optimizers()) is not None:
        return (apex.FusedSGD, {}) if name == "sgd" else (apex.FusedAdam, {"adam_w_mode": True})
    cls = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    return cls, {"fused": True}


def optimizer_backend(name: str, device: torch.device) -> str:
    """The name of the implementation that ``make_optimizer`` picks, for doctor and the report."""
    cls, _ = optimizer_class(name, device)
    return f"apex.{cls.__name__}" if cls.__module__.startswith("apex") else f"torch.{cls.__name__} (fused)"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter tensors as ``"<parameter index>.<name>"``."""
    return {
        f"{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


_OPTIMIZER_TENSORS = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


def check_optimizer_tensors(name: str, parameters: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless ``tensors`` are what optimizer ``name`` keeps of ``parameters``, in their order."""
    found: dict[str, set[int]] = {}
    for key, tensor in tensors.items():
        index, _, kind = key.partition(".")
        if kind not in _OPTIMIZER_TENSORS[name] or not index.isdecimal() or not int(index) < len(parameters):
            raise ValueError(f"{key[:40]!r} is nothing that {name} keeps")
        if tensor.shape != (() if kind == "step" else parameters[int(index)].shape) or not tensor.isfinite().all():
            raise ValueError(f"{key} of {list(tensor.shape)} is not that of its parameter, or not finite")
        found.setdefault(kind, set()).add(int(index))
    # apex counts the steps elsewhere.
    needed = _OPTIMIZER_TENSORS[name] - ({"step"} if apex_optimizers() is not None else set())
    if found and not (needed <= found.keys() and all(len(of_kind) == len(parameters) for of_kind in found.values())):
        raise ValueError("the optimizer's tensors of some parameters are missing")


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts ``optimizer_tensors`` back into a freshly made optimizer."""
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)


def apex_optimizers() -> Any | None:
    """NVIDIA apex's optimizers when they are installed with their CUDA extension, else None."""
    try:
        optimizers = importlib.import_module("apex.optimizers")
        importlib.import_module("amp_C")
    except ImportError:
        return None
    return optimizers if hasattr(optimizers, "FusedSGD") else None
