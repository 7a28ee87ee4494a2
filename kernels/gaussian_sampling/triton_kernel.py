"""Counter-based normals in one Triton launch; ``philox.philox_normal_reference`` is the equation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import wrap

BLOCK_QUADS = 256


@triton.jit
def _box_muller(radius_word, angle_word):
    u = radius_word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt(-2.0 * tl.log(u))
    # The angle is reduced to an eighth of a turn as an integer, so without rounding; then short polynomials do.
    quadrant = (angle_word + 0x20000000) >> 30
    rest = (angle_word - (quadrant << 30)).to(tl.int32, bitcast=True)
    t = rest.to(tl.float32) * 1.4629180792671596e-09
    t2 = t * t
    s = ((-1.9515295891e-4 * t2 + 8.3321608736e-3) * t2 - 1.6666654611e-1) * t2 * t + t
    c = (2.443315711809948e-5 * t2 - 1.388731625493765e-3) * t2 + 4.166664568298827e-2
    c = c * t2 * t2 - 0.5 * t2 + 1.0
    swap = (quadrant & 1) != 0
    cosine = tl.where(swap, s, c)
    sine = tl.where(swap, c, s)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    return radius * cosine, radius * sine


@triton.jit
def gaussian_sampling_fwd_kernel(
    seed_ptr, class_id_ptr, out_ptr, num_samples, num_dims, stream, sample_offset, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    quad = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    class_id = tl.load(class_id_ptr + row // num_samples)
    sample = row % num_samples + sample_offset
    seed = tl.load(seed_ptr).to(tl.uint64, bitcast=True)
    zero = tl.zeros([BLOCK], tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed, quad.to(tl.uint32), zero + sample.to(tl.uint32), zero + class_id.to(tl.uint32), zero + stream
    )
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    dim = quad * 4
    out_ptr += row * num_dims
    tl.store(out_ptr + dim, n0, mask=dim < num_dims)
    tl.store(out_ptr + dim + 1, n1, mask=dim + 1 < num_dims)
    tl.store(out_ptr + dim + 2, n2, mask=dim + 2 < num_dims)
    tl.store(out_ptr + dim + 3, n3, mask=dim + 3 < num_dims)


def philox_normal_triton(
    seed: Tensor,
    class_id_G: Tensor,
    num_samples: int,
    num_dims: int,
    stream: int = 0,
    sample_offset: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals [G, num_samples, num_dims] in ``dtype``, computed in float32."""
    normal_GSD = torch.empty(len(class_id_G), num_samples, num_dims, device=class_id_G.device)
    if normal_GSD.numel():
        grid = (len(class_id_G) * num_samples, triton.cdiv(num_dims, 4 * BLOCK_QUADS))
        wrap(gaussian_sampling_fwd_kernel)[grid](
            seed, class_id_G.contiguous(), normal_GSD, num_samples, num_dims, stream, sample_offset, BLOCK=BLOCK_QUADS
        )
    return normal_GSD.to(dtype)
