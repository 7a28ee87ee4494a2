"""Crop, antialiased bicubic resize, flip, brightness and normalisation of a ragged batch of uint8 images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels import native, triton_runtime
from ..kernels.augment import native_kernel, reference
from ..kernels.augment.error_bound import augment_error_bound
from .registry import OpSpec, Sample, choose_backend, register


def augment(
    pixels_U8: Tensor,
    offset_N: Tensor | np.ndarray,
    height_N: Tensor | np.ndarray,
    width_N: Tensor | np.ndarray,
    box_N4: Tensor | np.ndarray,
    clip_N4: Tensor | np.ndarray,
    flip_N: Tensor | np.ndarray,
    brightness_N: Tensor | np.ndarray,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
    check: bool = False,
) -> Tensor:
    """N images [3, size, size] in ``dtype`` from one uint8 buffer, resized as Pillow does it (bicubic).

    pixels_U8: one-dimensional buffer of RGB images [height, width, 3]; image n starts at byte ``offset_N``[n].
    height_N, width_N: integers, in pixels.
    box_N4: float64 (x0, y0, x1, y1) in pixels of the image: what is mapped onto the output.
    clip_N4: integers (x0, y0, x1, y1): the filter sees no pixel outside. The crop itself for "crop, then
        resize", the whole image for "resize, then crop".
    flip_N: whether to mirror left and right. brightness_N: factor on the 8-bit result; 1 leaves it as it is.
    mean, std: three numbers each, for pixels scaled to [0, 1].
    out: [N, 3, size, size], contiguous or channels_last, to be filled; its layout and dtype then hold.
    The plan (all but ``pixels_U8``) may be numpy arrays, and may stay on the CPU when the pixels do not.
    Raises ValueError for shapes, dtypes and layouts that do not fit, and for boxes or images that leave their
    bounds: always when the plan is on the CPU, else with ``check``, which costs a device synchronisation.
    """
    plan = _plan(pixels_U8, offset_N, height_N, width_N, box_N4, clip_N4, flip_N, brightness_N)
    num_images = plan[0].shape[0]
    if size < 1:
        raise ValueError(f"augment: size must be at least 1, got {size}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"augment: {name} must have 3 numbers, got {values}")
    shape = (num_images, 3, size, size)
    if out is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(shape, dtype=dtype, device=pixels_U8.device, memory_format=layout)
    elif tuple(out.shape) != shape or out.device != pixels_U8.device:
        raise ValueError(
            f"augment: out must be {list(shape)} on {pixels_U8.device}, got {list(out.shape)} on {out.device}"
        )
    elif not out.is_contiguous() and not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"augment: out must be contiguous or channels_last, got strides {out.stride()}")
    if not out.is_floating_point():
        raise ValueError(f"augment: dtype must be floating point, got {out.dtype}")
    chosen = choose_backend("augment", backend, pixels_U8.device, **_unusable(out))
    _augment_into(out, pixels_U8, *plan, [float(m) for m in mean], [float(s) for s in std], chosen, check)
    return out


def _plan(pixels_U8, offset_N, height_N, width_N, box_N4, clip_N4, flip_N, brightness_N) -> list[Tensor]:
    if pixels_U8.dtype != torch.uint8 or pixels_U8.dim() != 1 or not pixels_U8.is_contiguous():
        raise ValueError(
            "augment: pixels must be a contiguous one-dimensional uint8 tensor, "
            f"got {pixels_U8.dtype} {list(pixels_U8.shape)}"
        )
    wanted = {
        "offset": (offset_N, torch.int64, ()),
        "height": (height_N, torch.int32, ()),
        "width": (width_N, torch.int32, ()),
        "box": (box_N4, torch.float64, (4,)),
        "clip": (clip_N4, torch.int32, (4,)),
        "flip": (flip_N, torch.uint8, ()),
        "brightness": (brightness_N, torch.float32, ()),
    }
    num_images = len(offset_N)
    plan = []
    for name, (values, dtype, rest) in wanted.items():
        tensor = torch.as_tensor(values)
        if tuple(tensor.shape) != (num_images, *rest):
            raise ValueError(f"augment: {name} must be {[num_images, *rest]}, got {list(tensor.shape)}")
        if tensor.is_floating_point() and not dtype.is_floating_point:
            raise ValueError(f"augment: {name} must be integers, got {tensor.dtype}")
        device = plan[0].device if plan else tensor.device
        plan.append(tensor.to(device, dtype).contiguous())
    return plan


def _unusable(out: Tensor) -> dict[str, str | None]:
    reasons = {
        "native": native.why_not(native_kernel.SYMBOL),
        "triton": triton_runtime.why_not(out.device.type),
    }
    if out.dtype not in native_kernel.DTYPES:
        reasons["native"] = f"it writes float32 or bfloat16, not {out.dtype}"
    if out.dtype == torch.float64:
        reasons["triton"] = "it writes no float64"
    return reasons


@torch.library.custom_op("slca_fast::augment", mutates_args=("out",))
def _augment_into(
    out: Tensor,
    pixels_U8: Tensor,
    offset_N: Tensor,
    height_N: Tensor,
    width_N: Tensor,
    box_N4: Tensor,
    clip_N4: Tensor,
    flip_N: Tensor,
    brightness_N: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    backend: str,
    check: bool,
) -> None:
    if check or offset_N.device.type == "cpu":
        _check_values(pixels_U8.numel(), offset_N, height_N, width_N, box_N4, clip_N4, brightness_N)
    if out.numel() == 0:
        return
    plan = (offset_N, height_N, width_N, box_N4, clip_N4, flip_N, brightness_N)
    if backend == "reference":
        out.copy_(reference.augment(pixels_U8, *plan, out.shape[-1], mean, std, dtype=out.dtype))
        return
    offset_N, _, width_N, box_N4, clip_N4, flip_N, brightness_N = (t.to(out.device, non_blocking=True) for t in plan)
    rest = (width_N, box_N4, clip_N4, flip_N, brightness_N)
    if backend == "native":
        native_kernel.augment_into(out, pixels_U8, offset_N, *rest, mean, std, not out.is_contiguous())
    else:
        from ..kernels.augment import triton_kernel

        triton_kernel.augment_into(out, pixels_U8, offset_N, *rest, mean, std)


@_augment_into.register_fake
def _(out, *inputs) -> None:
    return None


def _check_values(num_bytes, offset_N, height_N, width_N, box_N4, clip_N4, brightness_N) -> None:
    extent_N2 = torch.stack([width_N, height_N], dim=1)
    end_N = offset_N + extent_N2.long().prod(1) * 3
    low_N2, high_N2 = clip_N4[:, :2], clip_N4[:, 2:]
    # in float32, so that an overhang in the last bit of a computed float64 box passes
    from_N2, to_N2 = ((box_N4[:, part] - low_N2).float() for part in (slice(0, 2), slice(2, 4)))
    checks = {
        "images must lie inside the pixel buffer": ((offset_N >= 0) & (end_N <= num_bytes) & (extent_N2 > 0).all(1)),
        "clip must be a rectangle inside the image": ((low_N2 >= 0) & (low_N2 < high_N2) & (high_N2 <= extent_N2)).all(
            1
        ),
        "box must be a rectangle inside clip": (
            (from_N2 >= 0) & (box_N4[:, :2] < box_N4[:, 2:]) & (to_N2 <= high_N2 - low_N2)
        ).all(1),
        "brightness must be finite and not negative": (brightness_N >= 0) & brightness_N.isfinite(),
    }
    for rule, is_good_N in checks.items():
        if bool(is_good_N.all()):
            continue
        n = int(is_good_N.logical_not().nonzero()[0])
        raise ValueError(
            f"augment: {rule}; image {n} has offset {int(offset_N[n])} of {num_bytes} bytes, "
            f"width x height {extent_N2[n].tolist()}, clip {clip_N4[n].tolist()}, box {box_N4[n].tolist()}, "
            f"brightness {float(brightness_N[n])}"
        )


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _batch(sizes: Sequence[tuple[int, int]], device: torch.device, crop_first_every: int = 2) -> tuple[Tensor, ...]:
    """Random images of (height, width) ``sizes``; each so many-th is cropped first, the others resized first."""
    generator = torch.Generator().manual_seed(len(sizes) + sum(h * 31 + w for h, w in sizes))
    height_N = torch.tensor([h for h, _ in sizes], dtype=torch.int32)
    width_N = torch.tensor([w for _, w in sizes], dtype=torch.int32)
    bytes_N = height_N.long() * width_N * 3
    offset_N = bytes_N.cumsum(0) - bytes_N
    pixels_U8 = torch.randint(256, (int(bytes_N.sum()),), dtype=torch.uint8, generator=generator)
    extent_N4 = torch.stack([width_N, height_N, width_N, height_N], dim=1).double()
    corner_N4 = torch.rand(len(sizes), 4, dtype=torch.float64, generator=generator) * 0.4
    corner_N4[:, 2:] = 1 - corner_N4[:, 2:]
    box_N4 = extent_N4 * corner_N4
    whole_N4 = torch.cat([torch.zeros_like(extent_N4[:, :2]), extent_N4[:, 2:]], dim=1)
    cropped_N4 = torch.cat([box_N4[:, :2].floor(), box_N4[:, 2:].ceil()], dim=1)
    crops_first_N1 = (torch.arange(len(sizes)) % crop_first_every == 0)[:, None]
    box_N4 = torch.where(crops_first_N1, cropped_N4, box_N4)
    clip_N4 = torch.where(crops_first_N1, cropped_N4, whole_N4).int()
    flip_N = torch.arange(len(sizes)) % 3 == 1
    brightness_N = 1 + 0.5 * (torch.arange(len(sizes)) % 4 == 2) - 0.3 * (torch.arange(len(sizes)) % 4 == 3)
    plan = (pixels_U8, offset_N, height_N, width_N, box_N4, clip_N4, flip_N, brightness_N.float())
    return tuple(tensor.to(device) for tensor in plan)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    ragged = ((7, 9), (1, 1), (40, 12), (5, 33), (16, 16))
    in_planes, in_pixels = ({"dtype": dtype, "channels_last": last} for last in (False, True))
    yield Sample("ragged to 16", (*_batch(ragged, device), 16, MEAN, STD), in_planes)
    yield Sample("ragged to 5, channels last", (*_batch(ragged, device), 5, MEAN, STD), in_pixels)
    yield Sample("one image to 1", (*_batch(((12, 9),), device), 1, MEAN, STD), in_planes)
    yield Sample("no image", (*_batch((), device), 8, MEAN, STD), in_pixels)


def _benchmark_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    batch = 128 if device.type == "cuda" else 32
    for extent, size in ((400, 224), (32, 224)):
        args = (*_batch(((extent, extent),) * batch, device, crop_first_every=1), size, MEAN, STD)
        yield Sample(f"{batch} x {extent} px to {size}", args, {"dtype": dtype})


def _pillow(
    pixels_U8, offset_N, height_N, width_N, box_N4, clip_N4, flip_N, brightness_N, size, mean, std, *, dtype
) -> Tensor:
    """The same batch as Pillow and torchvision make it, one image after the other."""
    from PIL import Image, ImageEnhance
    from torchvision.transforms import functional as tvf

    images = []
    plan = (t.tolist() for t in (offset_N, height_N, width_N, box_N4, clip_N4, flip_N, brightness_N))
    for offset, height, width, box, clip, flip, brightness in zip(*plan):
        pixels_HWC = pixels_U8[offset : offset + height * width * 3].view(height, width, 3)
        image = Image.fromarray(np.asarray(pixels_HWC)).crop(clip)
        relative = tuple(value - clip[axis % 2] for axis, value in enumerate(box))
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=relative)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if brightness != 1:
            image = ImageEnhance.Brightness(image).enhance(brightness)
        images.append(tvf.normalize(tvf.to_tensor(image), mean, std))
    return torch.stack(images).to(dtype)


def _bytes_moved(sample: Sample) -> int:
    """The boxes of the images read once and the output written once."""
    box_N4, size, dtype = sample.args[4], sample.args[8], sample.kwargs["dtype"]
    area = (box_N4[:, 2:] - box_N4[:, :2]).prod(1).sum()
    return int(3 * area) + len(box_N4) * 3 * size * size * dtype.itemsize


register(
    OpSpec(
        name="augment",
        function=augment,
        reference=reference.augment,
        backends={"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
        samples=_samples,
        benchmark_samples=_benchmark_samples,
        error_bound=augment_error_bound,
        dtypes=(torch.float32, torch.bfloat16),
        bytes_moved=_bytes_moved,
        baselines={"pillow": _pillow},
    )
)
