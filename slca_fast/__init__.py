"""Fast, exact and resumable continual learning with pre-trained vision transformers: SLCA and SLCA++."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slca_fast.experiment import run
    from slca_fast.methods import presets
    from slca_fast.methods.alignment import align_classifier
    from slca_fast.methods.gaussians import ClassGaussians
    from slca_fast.model.lora import apply_lora, merge_lora
    from slca_fast.ops.augment import augment
    from slca_fast.ops.class_moments import class_moments
    from slca_fast.ops.lora_linear import lora_linear
    from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy
    from slca_fast.ops.task_normalized_cross_entropy import task_normalized_cross_entropy
    from slca_fast.training.losses import SymmetricCrossEntropy
    from slca_fast.training.optim import slow_learner_param_groups

# Public name -> module: imported on first use, so that ``import slca_fast`` stays instant and touches no device.
_HOME = {
    "ClassGaussians": "slca_fast.methods.gaussians",
    "SymmetricCrossEntropy": "slca_fast.training.losses",
    "align_classifier": "slca_fast.methods.alignment",
    "apply_lora": "slca_fast.model.lora",
    "augment": "slca_fast.ops.augment",
    "class_moments": "slca_fast.ops.class_moments",
    "lora_linear": "slca_fast.ops.lora_linear",
    "merge_lora": "slca_fast.model.lora",
    "run": "slca_fast.experiment",
    "slow_learner_param_groups": "slca_fast.training.optim",
    "symmetric_cross_entropy": "slca_fast.ops.symmetric_cross_entropy",
    "task_normalized_cross_entropy": "slca_fast.ops.task_normalized_cross_entropy",
}

__all__ = [
    "ClassGaussians",
    "SymmetricCrossEntropy",
    "align_classifier",
    "apply_lora",
    "augment",
    "class_moments",
    "lora_linear",
    "merge_lora",
    "presets",
    "run",
    "slow_learner_param_groups",
    "symmetric_cross_entropy",
    "task_normalized_cross_entropy",
]


def __getattr__(name: str) -> Any:
    if name == "presets":
        return importlib.import_module("slca_fast.methods.presets")
    if name not in _HOME:
        raise AttributeError(f"module 'slca_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
