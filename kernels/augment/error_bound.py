"""How far rounding may take augmented images from the equation in reference.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..rounding import accumulate_dtype, unit
from .reference import augment


def augment_error_bound(
    upstream: Sequence[Tensor],
    *plan: Any,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Bound (of the images), float64; see ``OpSpec.error_bound``.

    The 8-bit levels are integers, alike on every machine: only (level / 255 - mean) / std rounds.
    """
    images = augment(*plan, dtype=torch.float64)
    mean, std = (torch.tensor(list(values), dtype=torch.float64, device=images.device) for values in plan[-2:])
    size = 4 * images.abs() + 2 * (mean / std).abs()[:, None, None]
    return [2 * unit(accumulate_dtype(dtype)) * size + unit(dtype) * images.abs()], []
