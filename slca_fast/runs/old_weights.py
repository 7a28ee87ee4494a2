"""Tensors of older checkpoints, read as today's; apart from ``old_runs``, so that reports need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def classifier_tensors(groups: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """A checkpoint's classifier; versions before 0.2 called the group ``aligned``."""
    return groups.get("classifier", groups.get("aligned"))


def stacked_heads(heads: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A checkpoint's heads as one weight and one bias; versions before 0.2 kept one of each per task.

    Raises KeyError for other names.
    """
    if "weight" in heads:
        return heads
    tasks = range(len(heads) // 2)
    empty = torch.empty(0)
    return {name: torch.cat([heads[f"heads.{t}.{name}"] for t in tasks] or [empty]) for name in ("weight", "bias")}
