"""Which image comes when, and what is cut from it: a pure function of (seed, task, epoch, sample id).

No generator has state. Every random number is a word of Philox4x32-10 (Salmon et al., 2011); its key is the
seed, its counter (sample id, purpose and draw, epoch, task): any rank, batch or chunk has the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slca_fast.datasets import RecipeSpec, recipes
from slca_fast.seeds import BRIGHTNESS, CROP, FLIP, ORDER, plan_counter

REFERENCE_SIZE = 224
"""Input side in pixels for which sizes are given; they scale."""
TEST_RESIZE = 256
"""Test transform of every recipe but ``none``: Resize(256) on the short side, CenterCrop(224)."""

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW_32 = np.uint64(0xFFFFFFFF)
_CROP_TRIES = 10


@dataclass(frozen=True, eq=False)
class AugmentPlan:
    """What to do with N images. Coordinates in source pixels, (x0, y0, x1, y1), x1 and y1 exclusive.

    The output is the region ``crop_box`` resampled (bicubic, antialiased) to size x size, mirrored where
    ``flip``, times ``brightness`` (rounded down to 8 bits, 1 = untouched). The filter may see outside
    the crop box but not outside ``clip_box``: crop-then-resize has clip = crop, resize-then-crop the whole image.
    """

    size: int
    crop_box_N4: np.ndarray
    """float64 [N, 4]."""
    clip_box_N4: np.ndarray
    """int32 [N, 4]."""
    flip_N: np.ndarray
    """bool [N]."""
    brightness_N: np.ndarray
    """float32 [N]."""
    resized_N2: np.ndarray | None = None
    """int64 [N, 2], (width, height) of the whole resized image; None where the crop comes first."""
    offset_N2: np.ndarray | None = None
    """int64 [N, 2], (left, top) of the crop in the resized image; None where the crop comes first."""

    @property
    def num_images(self) -> int:
        return len(self.flip_N)

    def take(self, rows: np.ndarray) -> AugmentPlan:
        """The plan of some of the rows."""
        return replace(
            self,
            crop_box_N4=self.crop_box_N4[rows],
            clip_box_N4=self.clip_box_N4[rows],
            flip_N=self.flip_N[rows],
            brightness_N=self.brightness_N[rows],
            resized_N2=None if self.resized_N2 is None else self.resized_N2[rows],
            offset_N2=None if self.offset_N2 is None else self.offset_N2[rows],
        )


def philox(key: tuple[int, int], counter_4: Sequence[np.ndarray | np.uint64]) -> np.ndarray:
    """Philox4x32-10: four broadcastable uint32 counters and a key of two uint32 -> uint32 [..., 4]."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in counter_4))
    k0, k1 = key
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW_32,
            (product_0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW_32,
        )
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def _words(seed: int, task: int, epoch: int, sample_id_N: np.ndarray, purpose: int, draw: int = 0) -> np.ndarray:
    """Four random uint32 words per sample, [N, 4]."""
    if not (0 <= seed < 2**64 and 0 <= task < 2**32 and 0 <= epoch < 2**32):
        raise ValueError(f"seed {seed}, task {task}, epoch {epoch}: give integers from 0 to 2^64, 2^32, 2^32")
    sample_id_N = np.asarray(sample_id_N)
    if sample_id_N.size and (sample_id_N.min() < 0 or sample_id_N.max() >= 2**32):
        raise ValueError("sample ids must be in [0, 2^32)")
    key = (seed & 0xFFFFFFFF, seed >> 32)
    return philox(key, (sample_id_N, np.uint64(plan_counter(purpose, draw)), np.uint64(epoch), np.uint64(task)))


def _uniform(word_N: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * (word_N.astype(np.float64) * 2.0**-32)


def _integer(word_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    """Uniform integer in [0, count), int64; bias below count / 2^32."""
    return (word_N.astype(np.uint64) * count_N.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def epoch_order(seed: int, task: int, epoch: int, sample_id_N: np.ndarray) -> np.ndarray:
    """The sample ids in this epoch's random order, int64 [N]; depends on the set of ids only."""
    sample_id_N = np.asarray(sample_id_N, dtype=np.int64)
    words = _words(seed, task, epoch, sample_id_N, ORDER).astype(np.uint64)
    sort_key_N = words[:, 0] << np.uint64(32) | words[:, 1]
    return sample_id_N[np.lexsort((sample_id_N, sort_key_N))]


def train_plan(
    recipe: str,
    image_size: int,
    seed: int,
    task: int,
    epoch: int,
    sample_id_N: np.ndarray,
    height_N: np.ndarray,
    width_N: np.ndarray,
) -> AugmentPlan:
    """Plan of the training transform of ``recipe`` for N samples; heights and widths in pixels.

    Raises ValueError for an unknown recipe or lengths that differ.
    """
    sample_id_N, height_N, width_N = _checked(sample_id_N, height_N, width_N)
    spec = _spec(recipe)
    num_images = len(sample_id_N)
    flip_N = np.zeros(num_images, dtype=bool)
    brightness_N = np.ones(num_images, dtype=np.float32)
    if spec.flip:
        flip_N = _words(seed, task, epoch, sample_id_N, FLIP)[:, 0] >= 2**31
    if spec.brightness:
        word_N = _words(seed, task, epoch, sample_id_N, BRIGHTNESS)[:, 0]
        brightness_N = _uniform(word_N, max(0.0, 1 - spec.brightness), 1 + spec.brightness).astype(np.float32)

    if spec.crop == "random-resized":

        def draw(rows: np.ndarray, k: int) -> np.ndarray:
            return _words(seed, task, epoch, sample_id_N[rows], CROP, k)

        box_N4 = random_resized_boxes(draw, height_N, width_N, spec.area, spec.ratio)
        return AugmentPlan(image_size, box_N4.astype(np.float64), box_N4.astype(np.int32), flip_N, brightness_N)
    if spec.crop == "resize-random":
        side = _scaled(spec.resize, image_size)
        resized_N2 = np.full((num_images, 2), side, dtype=np.int64)
        word = _words(seed, task, epoch, sample_id_N, CROP)
        span_N = np.full(num_images, side - image_size + 1)
        offset_N2 = np.stack([_integer(word[:, 1], span_N), _integer(word[:, 0], span_N)], axis=1)
        return _resize_first(image_size, resized_N2, offset_N2, height_N, width_N, flip_N, brightness_N)
    return test_plan(recipe, image_size, height_N, width_N)


def test_plan(recipe: str, image_size: int, height_N: np.ndarray, width_N: np.ndarray) -> AugmentPlan:
    """Plan of the test transform: resize the short side, centre crop; no randomness."""
    _, height_N, width_N = _checked(np.zeros(len(height_N), dtype=np.int64), height_N, width_N)
    spec = _spec(recipe)
    short = image_size if spec.crop == "none" else image_size * TEST_RESIZE // REFERENCE_SIZE
    resized_N2 = short_side_resized(height_N, width_N, short)
    # torchvision rounds half to even, as Python's round does and rint.
    offset_N2 = np.rint((resized_N2 - image_size) / 2.0).astype(np.int64)
    num_images = len(height_N)
    return _resize_first(
        image_size,
        resized_N2,
        offset_N2,
        height_N,
        width_N,
        np.zeros(num_images, dtype=bool),
        np.ones(num_images, dtype=np.float32),
    )


# pytest would otherwise collect it from test modules that import it
test_plan.__test__ = False


def short_side_resized(height_N: np.ndarray, width_N: np.ndarray, short: int) -> np.ndarray:
    """(width, height) after torchvision's Resize(short), int64 [N, 2]; the long side is truncated."""
    long_N = (short * np.maximum(height_N, width_N) / np.minimum(height_N, width_N)).astype(np.int64)
    wide_N = width_N > height_N
    return np.stack([np.where(wide_N, long_N, short), np.where(wide_N, short, long_N)], axis=1).astype(np.int64)


def random_resized_boxes(
    draw, height_N: np.ndarray, width_N: np.ndarray, area: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """torchvision's RandomResizedCrop.get_params for N images at once: int64 [N, 4] boxes (x0, y0, x1, y1).

    ``draw(rows, k)`` gives the uint32 words [len(rows), 4] of try k: area, ratio, top, left.
    """
    box_N4 = _fallback_boxes(height_N, width_N, ratio)
    open_rows = np.arange(len(height_N))
    for k in range(_CROP_TRIES):
        if not len(open_rows):
            break
        word = draw(open_rows, k)
        height, width = height_N[open_rows], width_N[open_rows]
        target = height * width * _uniform(word[:, 0], *area)
        aspect = np.exp(_uniform(word[:, 1], np.log(ratio[0]), np.log(ratio[1])))
        box_width = np.rint(np.sqrt(target * aspect)).astype(np.int64)
        box_height = np.rint(np.sqrt(target / aspect)).astype(np.int64)
        fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
        top = _integer(word[:, 2], np.maximum(height - box_height + 1, 1))
        left = _integer(word[:, 3], np.maximum(width - box_width + 1, 1))
        boxes = np.stack([left, top, left + box_width, top + box_height], axis=1)
        box_N4[open_rows[fits]] = boxes[fits]
        open_rows = open_rows[~fits]
    return box_N4


def _fallback_boxes(height_N: np.ndarray, width_N: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    in_ratio_N = width_N / height_N
    box_width_N = np.where(in_ratio_N > max(ratio), np.rint(height_N * max(ratio)).astype(np.int64), width_N)
    box_height_N = np.where(in_ratio_N < min(ratio), np.rint(width_N / min(ratio)).astype(np.int64), height_N)
    left_N, top_N = (width_N - box_width_N) // 2, (height_N - box_height_N) // 2
    return np.stack([left_N, top_N, left_N + box_width_N, top_N + box_height_N], axis=1).astype(np.int64)


def _resize_first(
    size: int,
    resized_N2: np.ndarray,
    offset_N2: np.ndarray,
    height_N: np.ndarray,
    width_N: np.ndarray,
    flip_N: np.ndarray,
    brightness_N: np.ndarray,
) -> AugmentPlan:
    scale_N2 = np.stack([width_N, height_N], axis=1) / resized_N2
    crop_box_N4 = np.concatenate([offset_N2 * scale_N2, (offset_N2 + size) * scale_N2], axis=1)
    zero_N = np.zeros_like(width_N)
    clip_box_N4 = np.stack([zero_N, zero_N, width_N, height_N], axis=1).astype(np.int32)
    return AugmentPlan(size, crop_box_N4, clip_box_N4, flip_N, brightness_N, resized_N2, offset_N2)


def _checked(sample_id_N: np.ndarray, height_N: np.ndarray, width_N: np.ndarray) -> tuple[np.ndarray, ...]:
    arrays = tuple(np.asarray(a, dtype=np.int64) for a in (sample_id_N, height_N, width_N))
    if len({a.shape for a in arrays}) != 1 or arrays[0].ndim != 1:
        shapes = [a.shape for a in arrays]
        raise ValueError(f"sample ids, heights and widths have shapes {shapes}; give equal lengths")
    if arrays[1].size and min(arrays[1].min(), arrays[2].min()) < 1:
        raise ValueError("heights and widths must be at least 1 pixel")
    return arrays


def _scaled(side: int, image_size: int) -> int:
    """A side given for 224-pixel inputs, for inputs of image_size pixels."""
    return round(side * image_size / REFERENCE_SIZE)


def _spec(recipe: str) -> RecipeSpec:
    known = recipes()
    if recipe not in known:
        raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(known)}")
    return known[recipe]
