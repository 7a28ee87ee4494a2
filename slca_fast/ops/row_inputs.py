"""Checks of what a loss over rows of logits is given; every error names the loss."""

from __future__ import annotations

from typing import Any

import torch


def validate(name: str, logits_BC: torch.Tensor, target_B: torch.Tensor) -> None:
    """Raises ValueError unless logits are floating [B, C >= 1] and targets integer [B] on the same device."""
    _require_tensor(name, "logits", logits_BC)
    _require_tensor(name, "targets", target_B)
    if logits_BC.dim() != 2 or logits_BC.shape[1] == 0:
        raise ValueError(f"{name}: logits must be [B, C] with C >= 1, got shape {list(logits_BC.shape)}")
    if logits_BC.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"{name}: logits must be float16, bfloat16, float32 or float64, got {logits_BC.dtype}")
    if target_B.dim() != 1 or target_B.shape[0] != logits_BC.shape[0]:
        raise ValueError(
            f"{name}: targets must be [{logits_BC.shape[0]}] for logits {list(logits_BC.shape)}, "
            f"got shape {list(target_B.shape)}"
        )
    if target_B.dtype.is_floating_point or target_B.dtype.is_complex or target_B.dtype == torch.bool:
        raise ValueError(f"{name}: targets must be integers, got {target_B.dtype}")
    if target_B.device != logits_BC.device:
        raise ValueError(f"{name}: logits are on {logits_BC.device}, targets on {target_B.device}")


def _require_tensor(name: str, argument: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name}: {argument} must be a tensor, got {type(value).__name__}; pass torch.as_tensor(it)")


def validate_weight(name: str, row_weight_B: torch.Tensor, logits_BC: torch.Tensor) -> None:
    """Raises ValueError unless the row weights are a floating constant [B] on the logits' device."""
    _require_tensor(name, "row_weight_B", row_weight_B)
    if row_weight_B.shape != logits_BC.shape[:1]:
        raise ValueError(f"{name}: row_weight_B must be [{logits_BC.shape[0]}], got shape {list(row_weight_B.shape)}")
    if not row_weight_B.dtype.is_floating_point:
        raise ValueError(f"{name}: row_weight_B must be floating point, got {row_weight_B.dtype}")
    if row_weight_B.device != logits_BC.device:
        raise ValueError(f"{name}: logits are on {logits_BC.device}, row_weight_B on {row_weight_B.device}")
    if row_weight_B.requires_grad:
        raise ValueError(f"{name}: row_weight_B gets no gradient; pass row_weight_B.detach()")


def check_values(name: str, logits_BC: torch.Tensor, target_B: torch.Tensor, scale_B: torch.Tensor) -> None:
    """Raises ValueError for a label out of range or a NaN logit in a row that counts; reads the device."""
    raise_for_labels(name, logits_BC.shape[1], target_B, scale_B)
    nan_B = logits_BC.detach().isnan().any(dim=1) & (scale_B != 0)
    if bool(nan_B.any()):
        raise ValueError(f"{name}: logits of row {int(nan_B.nonzero()[0])} are NaN")


def raise_for_labels(name: str, num_classes: int, target_B: torch.Tensor, scale_B: torch.Tensor) -> None:
    """Raises ValueError for a label outside [0, C) in a row that counts (scale neither 0 nor NaN); reads the device."""
    bad_B = ((target_B < 0) | (target_B >= num_classes)) & (scale_B != 0) & (scale_B == scale_B)
    if bool(bad_B.any()):
        row = int(bad_B.nonzero()[0])
        raise ValueError(f"{name}: label {int(target_B[row])} of row {row} is outside [0, {num_classes})")
