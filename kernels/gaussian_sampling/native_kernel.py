"""The native CPU kernel of the counter-based normals (kernels/csrc/gaussian_sampling.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native

SYMBOL = "slca_philox_normal"
_function = native.function(SYMBOL, "qpqqqqqpi")


def philox_normal_native(
    seed: Tensor,
    class_id_G: Tensor,
    num_samples: int,
    num_dims: int,
    stream: int = 0,
    sample_offset: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``philox.philox_normal_reference`` on the CPU, rounded to float32 within a few units in the last place."""
    normal_GSD = torch.empty(len(class_id_G), num_samples, num_dims)
    _function(
        int(seed),
        class_id_G.contiguous(),
        len(class_id_G),
        num_samples,
        num_dims,
        stream,
        sample_offset,
        normal_GSD,
        torch.get_num_threads(),
    )
    return normal_GSD.to(dtype)
