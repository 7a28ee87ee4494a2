"""Executes a plan with Pillow, bit for bit as torchvision's transforms would with the same random numbers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageEnhance

from slca_fast.config import DataConfig
from slca_fast.data.batch import Batch, PlanOf
from slca_fast.data.images import BadImage, decode_rgb
from slca_fast.data.index import ImageIndex
from slca_fast.data.plan import AugmentPlan
from slca_fast.errors import DataError

_AHEAD_BATCHES = 2
_MOST_RESIZED_PIXELS = 64
"""Up to this many times the output a whole image is resized, then cropped; beyond, only the crop's box."""


def render(image: Image.Image, plan: AugmentPlan, row: int) -> Image.Image:
    """Row ``row`` of the plan applied to one RGB image: crop, resize, flip, brightness."""
    size = (plan.size, plan.size)
    if plan.resized_N2 is None:
        image = image.crop(tuple(plan.clip_box_N4[row].tolist())).resize(size, Image.Resampling.BICUBIC)
    else:
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


class PillowSource:
    """Threads decode and augment; batches come out in order, a few ahead of the consumer."""

    backend = "pillow"

    def __init__(self, index: ImageIndex, config: DataConfig, reason: str = "asked for") -> None:
        self.reason = reason
        self._index, self._config = index, config
        self._pool = ThreadPoolExecutor(
            config.num_workers or os.cpu_count() or 1, thread_name_prefix="pillow"
        )
        self._mean_C = np.array(config.mean, dtype=np.float32).reshape(3, 1, 1)
        self._std_C = np.array(config.std, dtype=np.float32).reshape(3, 1, 1)

    def batches(self, sample_id_batches: Iterable[np.ndarray], plan_of: PlanOf) -> Iterator[Batch]:
        """See batch.Source."""
        waiting: deque[tuple[np.ndarray, np.ndarray, list[Future]]] = deque()
        try:
            for sample_id_B in sample_id_batches:
                waiting.append(self._start(np.asarray(sample_id_B, dtype=np.int64), plan_of))
                if len(waiting) > _AHEAD_BATCHES:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())
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
        path = self._index.path_of(sample_id)
        try:
            image = decode_rgb(path, self._config.exif_orientation)
        except BadImage as error:
            raise DataError(f"{path}: {error}") from None
        expected = (int(self._index.width_N[sample_id]), int(self._index.height_N[sample_id]))
        if image.size != expected:
            raise DataError(
                f"{path}: decodes to {image.size[0]} x {image.size[1]} pixels, its header said "
                f"{expected[0]} x {expected[1]}"
            )
        out_CHW[...] = np.asarray(render(image, plan, row)).transpose(2, 0, 1)
        # The order of torchvision's ToTensor and Normalize, so that the floats are the same too.
        out_CHW /= np.float32(255)
        out_CHW -= self._mean_C
        out_CHW /= self._std_C

    def _finish(self, sample_id_B: np.ndarray, images: np.ndarray, futures: list[Future]) -> Batch:
        for future in futures:
            future.result()
        return Batch(
            torch.from_numpy(images),
            torch.from_numpy(self._index.label_N[sample_id_B]),
            torch.from_numpy(sample_id_B),
        )
