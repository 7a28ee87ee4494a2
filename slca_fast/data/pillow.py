"""Executes a plan with Pillow, bit for bit as torchvision's transforms would with the same random numbers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from slca_fast.config import DataConfig
from slca_fast.data.batch import Batch, PlanOf, RuntimeProblems, make_batch
from slca_fast.data.images import BadImage, decode_rgb
from slca_fast.data.index import ImageIndex
from slca_fast.data.plan import AugmentPlan

_AHEAD_BATCHES = 2
_MOST_RESIZED_PIXELS = 64
"""Up to this many times the output a whole image is resized, then cropped; beyond, only the crop's box."""


def render(image: Image.Image, plan: AugmentPlan, row: int) -> Image.Image:
    """Row ``row`` of the plan applied to one RGB image: crop, resize, flip, brightness."""
    size = (plan.size, plan.size)
    if plan.resized_N2 is None:
        image = image.crop(tuple(plan.clip_box_N4[row].tolist())).resize(size, Image.Resampling.BICUBIC)
    else:
        assert plan.offset_N2 is not None
        resized = tuple(plan.resized_N2[row].tolist())
        if resized[0] * resized[1] <= _MOST_RESIZED_PIXELS * plan.size**2:
            left, top = plan.offset_N2[row].tolist()
            whole = image.resize(resized, Image.Resampling.BICUBIC)
            image = whole.crop((left, top, left + plan.size, top + plan.size))
        else:
            image = image.resize(size, Image.Resampling.BICUBIC, box=tuple(plan.crop_box_N4[row].tolist()))
    if plan.flip_N[row]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if plan.brightness_N[row] != 1:
        image = ImageEnhance.Brightness(image).enhance(float(plan.brightness_N[row]))
    return image


def decode_expected(index: ImageIndex, sample_id: int, exif_orientation: bool) -> Image.Image:
    """RGB image of one sample, of the size the index has for it; BadImage otherwise."""
    path: Path = index.path_of(sample_id)
    image = decode_rgb(path, exif_orientation)
    require_size(index, sample_id, *image.size)
    return image


def is_plain_jpeg(index: ImageIndex, sample_id: int, exif_orientation: bool) -> bool:
    """Whether other JPEG decoders give Pillow's pixels: grey or RGB, and not to be rotated."""
    return bool(index.plain_N[sample_id]) and not (exif_orientation and index.orientation_N[sample_id] != 1)


def require_size(index: ImageIndex, sample_id: int, width: int, height: int) -> None:
    """BadImage unless a decoder's size is the one the plan was made for."""
    expected = (int(index.width_N[sample_id]), int(index.height_N[sample_id]))
    if (width, height) != expected:
        raise BadImage(f"decodes to {width} x {height} pixels where its header said {expected[0]} x {expected[1]}")


def fill_normalised(out_CHW: np.ndarray, image: Image.Image, config: DataConfig) -> None:
    """Write (image / 255 - mean) / std, in the order of torchvision's ToTensor and Normalize: the same floats."""
    out_CHW[...] = np.asarray(image).transpose(2, 0, 1)
    out_CHW /= np.float32(255)
    out_CHW -= np.array(config.mean, dtype=np.float32).reshape(3, 1, 1)
    out_CHW /= np.array(config.std, dtype=np.float32).reshape(3, 1, 1)


def num_threads(config: DataConfig) -> int:
    """Decoding threads: as configured, or the cores this process may use."""
    return config.num_workers or len(os.sched_getaffinity(0))


class PillowSource:
    """Threads decode and augment; batches come out in order, a few ahead of the consumer."""

    backend = "pillow"

    def __init__(self, index: ImageIndex, config: DataConfig, reason: str = "asked for") -> None:
        self.reason = reason
        self._index, self._config = index, config
        self._bad = RuntimeProblems(index, config.policy)
        self.problems = self._bad.found
        self._pool = ThreadPoolExecutor(num_threads(config), thread_name_prefix="pillow")

    def batches(self, sample_id_batches: Iterable[np.ndarray], plan_of: PlanOf) -> Iterator[Batch]:
        """See batch.Source."""
        waiting: deque[tuple[np.ndarray, np.ndarray, list[Future]]] = deque()
        try:
            for sample_id_B in sample_id_batches:
                waiting.append(self._start(np.asarray(sample_id_B, dtype=np.int64), plan_of))
                if len(waiting) > _AHEAD_BATCHES:
                    yield from self._finish(*waiting.popleft())
            while waiting:
                yield from self._finish(*waiting.popleft())
        finally:
            for _, _, futures in waiting:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """See batch.Source."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, sample_id_B: np.ndarray, plan_of: PlanOf) -> tuple[np.ndarray, np.ndarray, list[Future]]:
        plan = plan_of(sample_id_B)
        images = np.empty((len(sample_id_B), 3, plan.size, plan.size), dtype=np.float32)
        futures = [
            self._pool.submit(self._fill, images[row], int(sample_id), plan, row)
            for row, sample_id in enumerate(sample_id_B)
        ]
        return sample_id_B, images, futures

    def _fill(self, out_CHW: np.ndarray, sample_id: int, plan: AugmentPlan, row: int) -> None:
        image = decode_expected(self._index, sample_id, self._config.exif_orientation)
        fill_normalised(out_CHW, render(image, plan, row), self._config)

    def _finish(self, sample_id_B: np.ndarray, images: np.ndarray, futures: list[Future]) -> Iterator[Batch]:
        bad_rows = []
        for row, future in enumerate(futures):
            try:
                future.result()
            except BadImage as error:
                self._bad.add(int(sample_id_B[row]), str(error))
                bad_rows.append(row)
        batch = make_batch(self._index, sample_id_B, torch.from_numpy(images), bad_rows)
        if batch is not None:
            yield batch
