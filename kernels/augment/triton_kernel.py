"""Augment in Triton: one program an image and tile, both passes on chip, equal to the reference bit for bit.

The axis resampled first is "a", the other "b" (a = x but in tall windows). Weights are made on the fly in float64 and
rounded to units of 2^-22, as in the reference. The pass along a sums in int32. The pass along b is a product of the
tensor cores: a weight splits into 4096 high + low, all factors and sums are integers that float16 and float32 hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 32
BLOCK_OF_ROWS = 32


@triton.jit
def _bicubic(t):
    t = tl.abs(t)
    inner = (1.5 * t - 2.5) * t * t + 1.0
    outer = (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5
    return tl.where(t < 1.0, inner, tl.where(t < 2.0, outer, 0.0))


@triton.jit
def _fixed_point(weight, unit):
    weight = weight * unit
    return (weight + tl.where(weight < 0.0, -0.5, 0.5)).to(tl.int32)


@triton.jit
def _to_levels(total):
    return tl.minimum(tl.maximum(total >> 22, 0), 255)


@triton.jit
def _axis(index, start, scale, length):
    """Of the outputs ``index``: centre, first and last source pixel, 2^22 / sum of weights; 1 / stretch; most taps."""
    stretch = tl.maximum(scale, 1.0)
    support = 2.0 * stretch
    inverse = 1.0 / stretch
    num_taps = tl.ceil(support).to(tl.int32) * 2 + 1
    centre = start + (index.to(tl.float64) + 0.5) * scale
    first = tl.maximum((centre - support + 0.5).to(tl.int32), 0)
    last = tl.minimum((centre + support + 0.5).to(tl.int32), length)
    total = centre * 0.0
    for tap in range(0, num_taps):
        weight = _bicubic(((first + tap).to(tl.float64) - centre + 0.5) * inverse)
        total += tl.where(first + tap < last, weight, 0.0)
    return centre, first, last, 4194304.0 / total, inverse, num_taps


@triton.jit
def _finish(total, brightness, mean, std):
    level = _to_levels(total + 2097152).to(tl.float32)
    level = tl.minimum(tl.maximum(level * brightness, 0.0), 255.0).to(tl.int32).to(tl.float32)
    return tl.div_rn(tl.div_rn(level, level * 0.0 + 255.0) - mean, level * 0.0 + std)


@triton.jit
def augment_kernel(
    pixels_ptr, offset_ptr, width_ptr, box_ptr, clip_ptr, flip_ptr, brightness_ptr, out_ptr,
    size, stride_n, stride_c, stride_y, stride_x,
    mean_r, mean_g, mean_b, std_r, std_g, std_b,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(size, TILE)
    tile_a = tl.program_id(1) % tiles
    tile_b = tl.program_id(1) // tiles

    left, top = tl.load(clip_ptr + n * 4), tl.load(clip_ptr + n * 4 + 1)
    window_x, window_y = tl.load(clip_ptr + n * 4 + 2) - left, tl.load(clip_ptr + n * 4 + 3) - top
    x0, y0 = tl.load(box_ptr + n * 4), tl.load(box_ptr + n * 4 + 1)
    extent_x, extent_y = tl.load(box_ptr + n * 4 + 2) - x0, tl.load(box_ptr + n * 4 + 3) - y0
    start_x, start_y = x0 - left, y0 - top
    flip = tl.load(flip_ptr + n).to(tl.int32) != 0
    row_bytes = tl.load(width_ptr + n) * 3
    pixels = pixels_ptr + tl.load(offset_ptr + n) + top.to(tl.int64) * row_bytes + left * 3

    size_f = size.to(tl.float64)
    shrink_x = window_x - tl.floor(window_x * size_f / extent_x + 0.5)
    shrink_y = window_y - tl.floor(window_y * size_f / extent_y + 0.5)
    y_first = (shrink_y > 0) & (shrink_y > 2 * shrink_x)

    length_a, length_b = tl.where(y_first, window_y, window_x), tl.where(y_first, window_x, window_y)
    start_a, start_b = tl.where(y_first, start_y, start_x), tl.where(y_first, start_x, start_y)
    scale_a = tl.where(y_first, extent_y, extent_x) / size_f
    scale_b = tl.where(y_first, extent_x, extent_y) / size_f
    step_a, step_b = tl.where(y_first, row_bytes, 3), tl.where(y_first, 3, row_bytes)
    stride_a, stride_b = tl.where(y_first, stride_y, stride_x), tl.where(y_first, stride_x, stride_y)
    flip_a, flip_b = flip & (y_first == 0), flip & y_first

    at_a = tl.minimum(tile_a * TILE + tl.arange(0, TILE), size - 1)
    at_b = tl.minimum(tile_b * TILE + tl.arange(0, TILE), size - 1)
    index_a = tl.where(flip_a, size - 1 - at_a, at_a)
    index_b = tl.where(flip_b, size - 1 - at_b, at_b)
    centre_a, first_a, last_a, unit_a, inverse_a, taps_a = _axis(index_a, start_a, scale_a, length_a)
    centre_b, first_b, last_b, unit_b, inverse_b, _ = _axis(index_b, start_b, scale_b, length_b)
    from_b, to_b = tl.min(first_b, axis=0), tl.max(last_b, axis=0)

    red = tl.zeros([TILE, TILE], tl.int32)
    green = tl.zeros([TILE, TILE], tl.int32)
    blue = tl.zeros([TILE, TILE], tl.int32)
    for block in range(from_b, to_b, BLOCK):  # pyright: ignore[reportArgumentType]  (Triton's own range)
        b = block + tl.arange(0, BLOCK)
        narrow_r = tl.full([BLOCK, TILE], 2097152, tl.int32)
        narrow_g = tl.full([BLOCK, TILE], 2097152, tl.int32)
        narrow_b = tl.full([BLOCK, TILE], 2097152, tl.int32)
        for tap in range(0, taps_a):
            a = first_a + tap
            weight_a = _fixed_point(_bicubic((a.to(tl.float64) - centre_a + 0.5) * inverse_a), unit_a)
            pointer = pixels + (b[:, None].to(tl.int64) * step_b + a[None, :].to(tl.int64) * step_a)
            inside = (b < to_b)[:, None] & (a < last_a)[None, :]
            narrow_r += weight_a[None, :] * tl.load(pointer, mask=inside, other=0).to(tl.int32)
            narrow_g += weight_a[None, :] * tl.load(pointer + 1, mask=inside, other=0).to(tl.int32)
            narrow_b += weight_a[None, :] * tl.load(pointer + 2, mask=inside, other=0).to(tl.int32)
        weight_b = _bicubic((b[None, :].to(tl.float64) - centre_b[:, None] + 0.5) * inverse_b)
        inside_b = (b[None, :] >= first_b[:, None]) & (b[None, :] < last_b[:, None])
        fixed_b = tl.where(inside_b, _fixed_point(weight_b, unit_b[:, None]), 0)
        high = (fixed_b + 2048) >> 12
        low = (fixed_b - (high << 12)).to(tl.float16)
        high = high.to(tl.float16)
        level_r = _to_levels(narrow_r).to(tl.float16)
        level_g = _to_levels(narrow_g).to(tl.float16)
        level_b = _to_levels(narrow_b).to(tl.float16)
        red += (tl.dot(high, level_r).to(tl.int32) << 12) + tl.dot(low, level_r).to(tl.int32)
        green += (tl.dot(high, level_g).to(tl.int32) << 12) + tl.dot(low, level_g).to(tl.int32)
        blue += (tl.dot(high, level_b).to(tl.int32) << 12) + tl.dot(low, level_b).to(tl.int32)

    brightness = tl.load(brightness_ptr + n)
    out = out_ptr + n * stride_n + at_b[:, None] * stride_b + at_a[None, :] * stride_a
    dtype = out_ptr.dtype.element_ty
    tl.store(out, _finish(red, brightness, mean_r, std_r).to(dtype))
    tl.store(out + stride_c, _finish(green, brightness, mean_g, std_g).to(dtype))
    tl.store(out + 2 * stride_c, _finish(blue, brightness, mean_b, std_b).to(dtype))


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
) -> None:
    """Fills ``out`` [N, 3, S, S] of any strides. All plan tensors are contiguous and on the device of the pixels."""
    num_images, _, size, _ = out.shape
    grid = (num_images, triton.cdiv(size, TILE) ** 2)
    augment_kernel[grid](
        pixels_U8, offset_N, width_N, box_N4, clip_N4, flip_N, brightness_N, out,
        size, *out.stride(), *mean, *std, TILE=TILE, BLOCK=BLOCK_OF_ROWS,
        num_warps=4,  # pyright: ignore[reportCallIssue]  (an option of the launch)
    )  # fmt: skip
