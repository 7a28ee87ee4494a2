"""Augment on the CPU through kernels/csrc/augment.cpp, equal to the reference bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native

SYMBOL = "slca_augment"
DTYPES = (torch.float32, torch.bfloat16)
_augment = native.function(SYMBOL, "pppppppqippiipi")


def augment_into(
    out: Tensor,
    pixels_U8: Tensor,
    offset_N: Tensor,
    width_N: Tensor,
    box_N4: Tensor,
    clip_N4: Tensor,
    flip_N: Tensor,
    brightness_N: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
) -> None:
    """Fills ``out`` [N, 3, S, S], float32 or bfloat16; the caller has checked the plan and made it contiguous."""
    mean_3, std_3 = (torch.tensor(list(values), dtype=torch.float32) for values in (mean, std))
    num_images, _, size, _ = out.shape
    _augment(
        pixels_U8, offset_N, width_N, box_N4, clip_N4, flip_N, brightness_N, num_images, size, mean_3, std_3,
        out.dtype == torch.bfloat16, channels_last, out, torch.get_num_threads(),
    )  # fmt: skip
