"""Crop, antialiased bicubic resize, flip, brightness, normalise: the truth, equal to Pillow level for level.

Of an axis of n pixels (of the clip rectangle) [start, stop) maps onto ``size`` outputs; with scale =
(stop - start) / size and r = max(scale, 1), output i weighs pixel j by
  w_ij ~ k((j + 1/2 - c_i) / r),  c_i = start + (i + 1/2) scale,  |j + 1/2 - c_i| <= 2 r,  0 <= j < n,
  k(t) = 1 - 5/2 t^2 + 3/2 t^3 for |t| < 1,  2 - 4 |t| + 5/2 t^2 - 1/2 |t|^3 for 1 <= |t| < 2  (a = -1/2),
normalised per output and rounded to multiples of 2^-22. Each of the two passes rounds to 8 bits, so their
order shows: as in Pillow 13, x is resampled first unless the whole window shrinks along y by more than twice as
many pixels. Brightness is Pillow's blend with black: truncated and clamped to 8 bits.
With box = clip this is crop-then-resize; with clip the whole image and box what the crop of a resized image covers,
it is resize-then-crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FRACTION_BITS = 22
FILTER_RADIUS = 2.0


def bicubic(distance: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -1/2."""
    t = distance.abs()
    inner = (1.5 * t - 2.5) * t * t + 1
    outer = (((t - 5) * t + 8) * t - 4) * -0.5
    return torch.where(t < 1, inner, torch.where(t < 2, outer, torch.zeros_like(t)))


def resample_weights(length: int, start: float, stop: float, size: int) -> Tensor:
    """Weights [size, length] in units of 2^-22 (integers held in float64)."""
    scale = (stop - start) / size
    stretch = max(scale, 1.0)
    support = FILTER_RADIUS * stretch
    centre_S1 = (start + (torch.arange(size, dtype=torch.float64) + 0.5) * scale)[:, None]
    pixel_L = torch.arange(length, dtype=torch.float64)
    first_S1, last_S1 = (centre_S1 - support + 0.5).trunc(), (centre_S1 + support + 0.5).trunc()
    inside = (pixel_L >= first_S1) & (pixel_L < last_S1)
    weight_SL = bicubic((pixel_L - centre_S1 + 0.5) * (1 / stretch)) * inside
    weight_SL = weight_SL / weight_SL.sum(1, keepdim=True) * 2**FRACTION_BITS
    return (weight_SL + torch.copysign(torch.tensor(0.5, dtype=torch.float64), weight_SL)).trunc()


def y_first(box: Sequence[float], clip: Sequence[int], size: int) -> bool:
    """Whether Pillow, resizing the whole of ``clip`` at this scale, resamples y before x."""
    width, height = clip[2] - clip[0], clip[3] - clip[1]
    whole_width, whole_height = round(width * size / (box[2] - box[0])), round(height * size / (box[3] - box[1]))
    return height - whole_height > max(0, 2 * (width - whole_width))


def _to_levels(value: Tensor) -> Tensor:
    return (value * 2.0**-FRACTION_BITS + 0.5).floor().clamp(0, 255)


def resized(pixels_HWC: Tensor, box: Sequence[float], clip: Sequence[int], size: int) -> Tensor:
    """The part ``box`` (x0, y0, x1, y1) of an image seen through ``clip``, as uint8 [size, size, 3]."""
    left, top, right, bottom = clip
    window = pixels_HWC[top:bottom, left:right].double()
    columns = resample_weights(right - left, box[0] - left, box[2] - left, size)
    rows = resample_weights(bottom - top, box[1] - top, box[3] - top, size)
    if y_first(box, clip, size):
        short = _to_levels(torch.einsum("yh,hwc->ywc", rows, window))
        return _to_levels(torch.einsum("xw,ywc->yxc", columns, short)).to(torch.uint8)
    narrow = _to_levels(torch.einsum("xw,hwc->hxc", columns, window))
    return _to_levels(torch.einsum("yh,hxc->yxc", rows, narrow)).to(torch.uint8)


def augment(
    pixels_U8: Tensor,
    offset_N: Tensor,
    height_N: Tensor,
    width_N: Tensor,
    box_N4: Tensor,
    clip_N4: Tensor,
    flip_N: Tensor,
    brightness_N: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Images [N, 3, size, size] on the device of the pixels; slca_fast.ops.augment has the rest."""
    device = pixels_U8.device
    wide = torch.promote_types(dtype, torch.float32)
    mean_3, std_3 = (torch.tensor(list(v), dtype=wide) for v in (mean, std))
    pixels_U8 = pixels_U8.cpu()
    images = torch.empty(len(offset_N), 3, size, size, dtype=dtype)
    brightness_N = brightness_N.float().cpu()
    plan = zip(*(t.tolist() for t in (offset_N, height_N, width_N, box_N4, clip_N4, flip_N)))
    for n, (offset, height, width, box, clip, flip) in enumerate(plan):
        pixels_HWC = pixels_U8[offset : offset + height * width * 3].view(height, width, 3)
        levels = resized(pixels_HWC, box, clip, size).float()
        levels = (levels * brightness_N[n]).clamp(0, 255).trunc()
        if flip:
            levels = levels.flip(1)
        images[n] = ((levels.to(wide) / 255 - mean_3) / std_3).permute(2, 0, 1).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(device).contiguous(memory_format=layout)
