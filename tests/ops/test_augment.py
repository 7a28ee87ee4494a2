"""Augment against Pillow and torchvision, level for level, on photos and on random shapes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from slca_fast.data import plan as plans
from slca_fast.kernels import native, triton_runtime
from slca_fast.ops.augment import MEAN, STD, augment
from slca_fast.ops.registry import REGISTRY

BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="native library not built")),
]
needs_interpreter = pytest.mark.skipif(
    triton_runtime.why_not("cpu") is not None, reason="Triton on the CPU needs TRITON_INTERPRET=1"
)
over_backends = pytest.mark.parametrize("backend", BACKENDS)
KNOWN_PASS_ORDER = int(PIL.__version__.split(".")[0]) >= 13


@functools.cache
def photos() -> tuple[np.ndarray, ...]:
    datasets = pytest.importorskip("sklearn.datasets")
    return tuple(np.ascontiguousarray(image) for image in datasets.load_sample_images().images)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ragged(images: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
    """Pixel buffer, offsets, heights, widths."""
    sizes = np.array([image.size for image in images], dtype=np.int64)
    heights, widths = (np.array([image.shape[axis] for image in images], dtype=np.int32) for axis in (0, 1))
    pixels = np.concatenate([image.reshape(-1) for image in images]) if images else np.zeros(0, np.uint8)
    return tuple(torch.from_numpy(a) for a in (pixels, np.cumsum(sizes) - sizes, heights, widths))


def run(images, box, clip, size, backend, flip=None, brightness=None, **options) -> torch.Tensor:
    flip = torch.zeros(len(images), dtype=torch.bool) if flip is None else torch.as_tensor(flip)
    brightness = torch.ones(len(images)) if brightness is None else torch.as_tensor(brightness)
    box, clip = torch.as_tensor(box, dtype=torch.float64), torch.as_tensor(clip)
    mean, std = options.pop("mean", MEAN), options.pop("std", STD)
    return augment(*ragged(images), box, clip, flip, brightness, size, mean, std, backend=backend, **options)


def levels(images: torch.Tensor) -> torch.Tensor:
    """The 8-bit values, when mean is 0 and std 1."""
    return (images.double() * 255).round().long()


RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def to_chw(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.int64)).permute(2, 0, 1)


def pillow_takes_y_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    return height - new_height > max(0, 2 * (width - new_width))


@over_backends
@pytest.mark.parametrize("recipe", ["imagenet-r", "cub200", "cars196", "cifar100", "domainnet", "none"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_recipes_equal_torchvision(recipe, split, backend):
    images = [*photos(), photos()[0][:200, :150], photos()[1][100:132, 300:332]]
    sizes = np.array([image.shape[:2] for image in images])
    arguments = (sizes[:, 0], sizes[:, 1])
    if split == "train":
        plan = plans.train_plan(recipe, 64, 7, 0, 3, np.arange(len(images)), *arguments)
    else:
        plan = plans.test_plan(recipe, 64, *arguments)
    ours = run(images, plan.crop_box_N4, plan.clip_box_N4, 64, backend, plan.flip_N, plan.brightness_N)
    for n, image in enumerate(Image.fromarray(image) for image in images):
        if plan.resized_N2 is None:
            left, top, right, bottom = plan.clip_box_N4[n].tolist()
            image = tvf.resized_crop(image, top, left, bottom - top, right - left, [64, 64], InterpolationMode.BICUBIC)
        else:
            (new_width, new_height), (left, top) = plan.resized_N2[n].tolist(), plan.offset_N2[n].tolist()
            image = tvf.resize(image, [new_height, new_width], InterpolationMode.BICUBIC)
            image = tvf.crop(image, top, left, 64, 64)
        if plan.flip_N[n]:
            image = tvf.hflip(image)
        image = tvf.adjust_brightness(image, float(plan.brightness_N[n]))
        assert torch.equal(ours[n], tvf.normalize(tvf.to_tensor(image), MEAN, STD)), n


@over_backends
def test_a_float_box_is_within_the_stated_error_of_pillow(backend):
    generator = np.random.default_rng(3)
    for image in photos():
        height, width, _ = image.shape
        x = np.sort(generator.uniform(0, width, (4, 2)), axis=1) + np.array([[0, 1e-3]])
        y = np.sort(generator.uniform(0, height, (4, 2)), axis=1) + np.array([[0, 1e-3]])
        box = np.stack([x[:, 0], y[:, 0], x[:, 1].clip(max=width), y[:, 1].clip(max=height)], axis=1)
        ours = run([image] * 4, box, [[0, 0, width, height]] * 4, 48, backend, **RAW)
        for n in range(4):
            pillow = Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC, box=tuple(box[n].tolist()))
            error = (levels(ours[n]) - to_chw(pillow)).abs()
            assert error.max() <= 2 and error.double().mean() <= 0.3


@over_backends
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_crop_of_any_size_equals_pillow(backend, data):
    height, width = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)), label="height, width")
    size = data.draw(st.integers(1, 40), label="size")
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    flip = data.draw(st.booleans(), label="flip")
    image, box = noise(height, width, seed=height * 71 + width), (left, top, right, bottom)
    ours = levels(run([image], [box], [box], size, backend, [flip], **RAW))[0]
    pillow = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BICUBIC)
    if flip:
        pillow = pillow.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if KNOWN_PASS_ORDER or not pillow_takes_y_first(bottom - top, right - left, size, size):
        assert torch.equal(ours, to_chw(pillow))


@over_backends
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_crop_of_any_resized_image_equals_pillow(backend, data):
    height, width = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)), label="height, width")
    size = data.draw(st.integers(1, 30), label="size")
    new_height, new_width = data.draw(st.tuples(st.integers(size, 90), st.integers(size, 90)), label="resized to")
    left, top = data.draw(st.integers(0, new_width - size)), data.draw(st.integers(0, new_height - size))
    scale_x, scale_y = width / new_width, height / new_height
    box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
    image = noise(height, width, seed=height * 71 + width)
    ours = levels(run([image], [box], [(0, 0, width, height)], size, backend, **RAW))[0]
    pillow = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    pillow = pillow.crop((left, top, left + size, top + size))
    if KNOWN_PASS_ORDER or not pillow_takes_y_first(height, width, new_height, new_width):
        assert torch.equal(ours, to_chw(pillow))


@over_backends
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1, 1, 1), (1, 1, 9), (1, 700, 3), (700, 1, 3), (2000, 3, 2), (3, 2000, 2), (900, 1100, 1), (2, 2, 64)],
)
def test_extreme_shapes_equal_pillow(height, width, size, backend):
    image = noise(height, width)
    box = (0, 0, width, height)
    pillow = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    if KNOWN_PASS_ORDER or not pillow_takes_y_first(height, width, size, size):
        assert torch.equal(levels(run([image], [box], [box], size, backend, **RAW))[0], to_chw(pillow))


@over_backends
def test_brightness_equals_pillow(backend):
    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    factors = torch.cat([torch.tensor([0.0, 1.0, 63 / 255, 1 + 63 / 255]), torch.linspace(0.3, 1.9, 40)])
    images, box = [every_level] * len(factors), [(0, 0, 16, 16)] * len(factors)
    ours = levels(run(images, box, box, 16, backend, brightness=factors, **RAW))
    for n, factor in enumerate(factors.tolist()):
        assert torch.equal(ours[n], to_chw(ImageEnhance.Brightness(Image.fromarray(every_level)).enhance(factor)))


@over_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_out_is_filled_in_its_own_layout(backend, dtype, channels_last):
    images = [noise(20, 30), noise(9, 5)]
    box = [(0, 0, 30, 20), (1, 2, 4, 8)]
    want = run(images, box, box, 19, "reference")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.full((2, 3, 19, 19), torch.nan, dtype=dtype).contiguous(memory_format=layout)
    got = run(images, box, box, 19, backend, out=out)
    assert got is out and out.is_contiguous(memory_format=layout)
    assert torch.equal(out, want.to(dtype))
    fresh = run(images, box, box, 19, backend, dtype=dtype, channels_last=channels_last)
    assert fresh.is_contiguous(memory_format=layout) and torch.equal(fresh, want.to(dtype))


@pytest.mark.skipif(not native.available(), reason="native library not built")
def test_every_instruction_set_and_thread_count_gives_the_same_bytes():
    images = [noise(40, 50, seed) for seed in range(5)] + [noise(90, 3), noise(3, 90)]
    box = [(1.25, 2.5, image.shape[1] - 0.5, image.shape[0] - 0.25) for image in images]
    clip = [(0, 0, image.shape[1], image.shape[0]) for image in images]
    want = run(images, box, clip, 37, "reference")
    threads, isa = torch.get_num_threads(), native.isa()
    try:
        for name in native.ISA_NAMES:
            native.set_isa(name)
            for num_threads in (1, 3):
                torch.set_num_threads(num_threads)
                assert torch.equal(run(images, box, clip, 37, "native"), want), (name, num_threads)
    finally:
        native.set_isa(isa)
        torch.set_num_threads(threads)


@pytest.mark.skipif(not native.available(), reason="native library not built")
def test_native_reads_no_byte_beyond_the_buffer():
    """The last image ends at a page that must not be touched."""
    import ctypes
    import mmap

    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + 2 * page), page, 0) == 0
    try:
        everything = torch.frombuffer(memory, dtype=torch.uint8)
        for height, width in ((1, 1), (3, 7), (20, 33)):
            num_bytes = height * width * 3
            pixels = everything[2 * page - num_bytes : 2 * page]
            plan = (torch.tensor([v]) for v in (0, height, width))
            box = torch.tensor([[0, 0, width, height]])
            ones = torch.ones(1)
            augment(pixels, *plan, box, box, ones.bool(), ones, 8, MEAN, STD, backend="native")
    finally:
        libc.mprotect(ctypes.c_void_p(address + 2 * page), page, 3)


@needs_interpreter
@pytest.mark.parametrize(
    ("height", "width", "size"), [(9, 14, 7), (60, 9, 11), (3, 4, 35), (1, 1, 2)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("crops_first", [False, True])
def test_triton_equals_the_reference(height, width, size, crops_first):
    box = [(1.25, 0.5, width - 0.5, height - 0.25)] if min(height, width) > 2 else [(0, 0, width, height)]
    clip = [(0, 0, width, height)]
    if crops_first:
        box = clip = [(0, height // 3, width, height)]
    plan = ([noise(height, width)], box, clip, size)
    options = {"flip": [True], "brightness": [0.8], "channels_last": crops_first}
    assert torch.equal(run(*plan, "triton", **options), run(*plan, "reference", **options))


COMPILE_FOR_A_GPU = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from slca_fast.kernels.augment import triton_kernel

kernel = triton_kernel.augment_kernel
types = {name: "i32" for name in kernel.arg_names} | {"TILE": "constexpr", "BLOCK": "constexpr"}
types |= {name: "fp32" for name in types if name.startswith(("mean", "std"))}
types |= {f"{name}_ptr": kind for name, kind in {
    "pixels": "*u8", "offset": "*i64", "width": "*i32", "box": "*fp64", "clip": "*i32", "flip": "*u8",
    "brightness": "*fp32", "out": "*bf16"}.items()}
constants = {"TILE": triton_kernel.TILE, "BLOCK": triton_kernel.BLOCK_OF_ROWS}
target = GPUTarget("cuda", int(sys.argv[1]), 32)
compiled = triton.compile(ASTSource(kernel, types, constants), target=target, options={"num_warps": 4})
assert "mma" in compiled.asm["ptx"] and compiled.metadata.shared < 48 * 1024
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_kernel_compiles_for_a_gpu(capability):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE_FOR_A_GPU, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not native.available(), reason="native library not built")
def test_the_benchmark_times_equal_results():
    spec = REGISTRY["augment"]
    for sample in spec.benchmark_samples(torch.device("cpu"), torch.float32):
        ours = spec.function(*sample.args, **sample.kwargs, backend="native")
        assert torch.equal(ours, spec.baselines["pillow"](*sample.args, **sample.kwargs)), sample.label


def test_numpy_plans_are_taken():
    image = noise(10, 12)
    box = np.array([[0.0, 0.0, 12.0, 10.0]])
    arrays = (np.array([0]), np.array([10]), np.array([12]), box, box.astype(np.int32), np.array([True]))
    ours = augment(torch.from_numpy(image.reshape(-1)), *arrays, np.ones(1, np.float32), 5, MEAN, STD)
    assert torch.equal(ours, run([image], box, box.astype(np.int32), 5, "reference", [True]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [[0, 0, 13, 10]]}, r"box must be .* image 0 .*\[0.0, 0.0, 13.0, 10.0\]"),
        ({"box": [[5, 0, 5, 10]]}, "box must be"),
        ({"box": [[float("nan"), 0, 5, 10]]}, "box must be"),
        ({"clip": [[0, 0, 12, 11]]}, "clip must be"),
        ({"clip": [[-1, 0, 12, 10]]}, "clip must be"),
        ({"height": [11]}, "inside the pixel buffer"),
        ({"offset": [-3]}, "inside the pixel buffer"),
        ({"offset": [3]}, "inside the pixel buffer"),
        ({"width": [0]}, "inside the pixel buffer"),
        ({"brightness": [-1.0]}, "brightness"),
        ({"brightness": [float("inf")]}, "brightness"),
        ({"box": [[0, 0, 12]]}, r"box must be \[1, 4\], got \[1, 3\]"),
        ({"flip": [0.5]}, "flip must be integers"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"mean": (0.5,)}, "mean must have 3 numbers"),
        ({"out": torch.empty(1, 3, 5, 6)}, r"out must be \[1, 3, 5, 5\]"),
        ({"out": torch.empty(1, 3, 5, 10)[..., ::2]}, "strides"),
        ({"dtype": torch.uint8}, "uint8"),
        ({"pixels": torch.zeros(10, 12, 3, dtype=torch.uint8)}, "one-dimensional"),
        ({"backend": "cuda"}, "cuda"),
        ({"backend": "native", "dtype": torch.float64}, "float64"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "pixels": torch.zeros(360, dtype=torch.uint8), "offset": [0], "height": [10], "width": [12],
        "box": [[0.0, 0.0, 12.0, 10.0]], "clip": [[0, 0, 12, 10]], "flip": [True], "brightness": [1.0],
        "size": 5, "mean": MEAN, "std": STD,
    }  # fmt: skip
    changed = arguments | change
    options = {name: changed.pop(name) for name in ("dtype", "out", "backend") if name in changed}
    with pytest.raises(ValueError, match=message):
        augment(*changed.values(), **options)
