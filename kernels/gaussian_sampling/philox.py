"""Counter-based normals: a pure function of (seed, class, sample, dimension), so of nothing else.

Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011): key (seed low, seed high) and counter
(dimension // 4, sample, class, stream) give four 32-bit words, which Box-Muller turns into the normals of
dimensions 4 q .. 4 q + 3. Stream 0 feeds the Gaussian factor, stream 1 the isotropic ridge of low-rank
factors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
MASK_32 = 0xFFFFFFFF
CHUNK_COUNTERS = 1 << 14
"""Counters per pass on the CPU: the work arrays stay in cache, and below torch's grain for waking its threads."""


def philox_words(counter: tuple[Tensor, Tensor, Tensor, int], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (held in int64) per counter; ``counter`` entries broadcast, ``seed`` is int64 [1]."""
    key_0, key_1 = seed & MASK_32, (seed >> 32) & MASK_32
    word_0, word_1, word_2, word_3 = torch.broadcast_tensors(*counter[:3], torch.full_like(counter[2], counter[3]))
    for _ in range(10):
        product_0, product_1 = word_0 * MULTIPLIER_0, word_2 * MULTIPLIER_1
        word_0, word_1, word_2, word_3 = (
            (product_1 >> 32) & MASK_32 ^ word_1 ^ key_0,
            product_1 & MASK_32,
            (product_0 >> 32) & MASK_32 ^ word_3 ^ key_1,
            product_0 & MASK_32,
        )
        key_0, key_1 = (key_0 + WEYL_0) & MASK_32, (key_1 + WEYL_1) & MASK_32
    return word_0, word_1, word_2, word_3


def philox_normal_reference(
    seed: Tensor,
    class_id_G: Tensor,
    num_samples: int,
    num_dims: int,
    stream: int = 0,
    sample_offset: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals [G, num_samples, num_dims], computed in float64 and rounded to ``dtype``.

    Entry (g, i, d) depends on seed (int64 [1]), class_id_G[g], sample_offset + i, d and stream only. From words
    (w0, w1): u = w0 2^-32 + 2^-33 rounded to float32 at each step, r = sqrt(-2 ln u), theta = 2 pi w1 2^-32, normals
    r cos theta and r sin theta; from (w2, w3) likewise the next two.
    """
    num_quads = (num_dims + 3) // 4
    device = class_id_G.device
    quad_Q = torch.arange(num_quads, device=device)
    sample_S1 = torch.arange(sample_offset, sample_offset + num_samples, device=device)[:, None]
    normal = torch.empty(len(class_id_G), num_samples, num_dims, device=device, dtype=dtype)
    step = num_samples if device.type != "cpu" else max(1, CHUNK_COUNTERS // max(num_quads, 1))
    for index, class_id in enumerate(class_id_G[:, None, None]):
        for start in range(0, num_samples, max(step, 1)):
            words = philox_words((quad_Q, sample_S1[start : start + step], class_id[0], stream), seed)
            pairs = [_box_muller(words[0], words[1]), _box_muller(words[2], words[3])]
            block = torch.stack([*pairs[0], *pairs[1]], dim=-1).flatten(-2)
            normal[index, start : start + step] = block[:, :num_dims]
    return normal


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    uniform = radius_word.float() * 2.0**-32 + 2.0**-33
    radius = torch.sqrt(-2.0 * torch.log(uniform.double()))
    angle = angle_word.double() * (2.0 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)
