"""Executes a plan with NVIDIA DALI: encoded bytes and boxes in, decoded, resampled and normalised batches out.

On the CPU the decoded pixels are Pillow's own; the bicubic resize differs by one level of 255 in a fifth of the values
and by more (up to 6 seen) in 5 of 100,000, because Pillow clamps to 8 bits between the axes (test_backends_agree.py).
With a GPU the decoder is ``mixed`` and the batches stay there.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from slca_fast.config import DataConfig
from slca_fast.data.batch import Batch, PlanOf, RuntimeProblems, make_batch
from slca_fast.data.images import JPEG_END, BadImage, decode_rgb
from slca_fast.data.index import ImageIndex
from slca_fast.data.pillow import decode_expected, fill_normalised, is_plain_jpeg, num_threads, render, require_size
from slca_fast.data.plan import AugmentPlan
from slca_fast.datasets import recipes
from slca_fast.errors import UserError

_PLACEHOLDER = np.frombuffer(b"P6 1 1 255\n\0\0\0", dtype=np.uint8)
"""Stands in for a file that could not be read, so that the rest of its batch goes on."""


def why_not() -> str | None:
    """None when DALI can be imported here, else the reason."""
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        return f"DALI cannot be imported ({error}); install the extra 'dali'"
    return None


@dataclass(frozen=True, eq=False)
class _Request:
    """One batch on its way: what was asked for, and the files as they are read."""

    id_B: np.ndarray
    plan: AugmentPlan
    files: list[Future]
    pipeline: Any = None


class DaliSource:
    """One DALI pipeline fed through external sources; it has no random numbers and no order of its own."""

    backend = "dali"

    def __init__(
        self,
        index: ImageIndex,
        config: DataConfig,
        device: torch.device | str = "cpu",
        reason: str = "asked for",
    ) -> None:
        missing = why_not()
        if missing:
            raise UserError(f"--data.backend is 'dali': {missing}")
        self.reason = reason
        self._index, self._config, self._device = index, config, torch.device(device)
        self._in_flight = config.prefetch
        self._bad = RuntimeProblems(index, config.policy)
        self.problems = self._bad.found
        self._readers = ThreadPoolExecutor(num_threads(config), thread_name_prefix="dali-read")
        self._has_brightness = recipes()[config.recipe].brightness > 0
        self._pipeline: Any = None
        self._capacity, self._size = 0, 0

    def batches(self, sample_id_batches: Iterable[np.ndarray], plan_of: PlanOf) -> Iterator[Batch]:
        """See batch.Source."""
        chunks = [np.asarray(id_B, dtype=np.int64) for id_B in sample_id_batches]
        largest = max((len(id_B) for id_B in chunks), default=0)
        upcoming = iter(chunks)
        reading: deque[_Request] = deque()
        running: deque[_Request] = deque()
        try:
            for _ in chunks:
                for id_B in islice(upcoming, self._in_flight + 1 - len(reading)):
                    reading.append(self._read(id_B, plan_of(id_B)))
                while reading and len(running) < self._in_flight:
                    running.append(self._feed(reading.popleft(), largest))
                batch = self._finish(running.popleft())
                if batch is not None:
                    yield batch
        finally:
            if running:
                # What is still inside belongs to nobody: a new pipeline is cheaper than a wrong batch.
                self._pipeline = None

    def close(self) -> None:
        """See batch.Source."""
        self._pipeline = None
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _read(self, id_B: np.ndarray, plan: AugmentPlan) -> _Request:
        files = [
            self._readers.submit(self._encoded, int(sample_id), plan.clip_box_N4[row])
            for row, sample_id in enumerate(id_B)
        ]
        return _Request(id_B, plan, files)

    def _encoded(self, sample_id: int, clip_box: np.ndarray) -> np.ndarray:
        """Bytes for DALI's decoder: plain JPEGs as they are; all else decoded by Pillow and clipped, as PPM."""
        path, exif = self._index.path_of(sample_id), self._config.exif_orientation
        if self._sees_whole_file(sample_id):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise BadImage(error.strerror or str(error)) from None
            if not content.endswith(JPEG_END):
                # DALI would fill up a truncated file in silence; Pillow says whether it is one.
                decode_rgb(content)
            return np.frombuffer(content, dtype=np.uint8)
        image = decode_expected(self._index, sample_id, exif).crop(tuple(clip_box.tolist()))
        return np.frombuffer(b"P6 %d %d 255\n" % image.size + image.tobytes(), dtype=np.uint8)

    def _sees_whole_file(self, sample_id: int) -> bool:
        return is_plain_jpeg(self._index, sample_id, self._config.exif_orientation)

    def _feed(self, request: _Request, largest: int) -> _Request:
        size = request.plan.size
        if self._pipeline is None or largest > self._capacity or size != self._size:
            self._pipeline, self._capacity, self._size = self._build(largest, size), largest, size
        plan = request.plan
        encoded = [_PLACEHOLDER if file.exception() else file.result() for file in request.files]
        usable = np.array([content is not _PLACEHOLDER for content in encoded])
        clip_N4 = np.where(usable[:, None], plan.clip_box_N4, [0, 0, 1, 1])
        crop_N4 = np.where(usable[:, None], plan.crop_box_N4, [0, 0, 1, 1]) - np.tile(clip_N4[:, :2], 2)
        origin_N2 = clip_N4[:, :2] * [[self._sees_whole_file(int(i))] for i in request.id_B]
        self._feed_arrays(
            self._pipeline,
            encoded,
            {
                "start": origin_N2.astype(np.int32),
                "shape": (clip_N4[:, 2:] - clip_N4[:, :2]).astype(np.int32),
                "from": crop_N4[:, [1, 0]].astype(np.float32),
                "to": crop_N4[:, [3, 2]].astype(np.float32),
                "mirror": plan.flip_N.astype(np.int32),
                "brightness": plan.brightness_N,
            },
        )
        self._pipeline.schedule_run()
        return replace(request, pipeline=self._pipeline)

    def _feed_arrays(self, pipeline: Any, encoded: list[np.ndarray], vectors: dict[str, np.ndarray]) -> None:
        if not self._has_brightness:
            brightness = vectors.pop("brightness")
            assert (brightness == 1).all()
        pipeline.feed_input("encoded", encoded)
        for name, values in vectors.items():
            pipeline.feed_input(name, np.ascontiguousarray(values))

    def _fill_queue(self, pipeline: Any) -> None:
        """A pipeline's first scheduled run is as many as its queue is deep; they get a black pixel each."""
        pair = np.ones((1, 2), dtype=np.int32)
        for _ in range(self._in_flight):
            self._feed_arrays(
                pipeline,
                [_PLACEHOLDER],
                {
                    "start": 0 * pair,
                    "shape": pair,
                    "from": np.zeros((1, 2), dtype=np.float32),
                    "to": np.ones((1, 2), dtype=np.float32),
                    "mirror": pair[:, 0],
                    "brightness": np.ones(1, dtype=np.float32),
                },
            )
        pipeline.schedule_run()
        for _ in range(self._in_flight):
            pipeline.outputs()

    def _build(self, capacity: int, size: int) -> Any:
        # DALI makes its operators and types when it is imported: no checker sees them.
        dali: Any = importlib.import_module("nvidia.dali")
        fn, types = dali.fn, dali.types
        on_gpu = self._device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=capacity,
            num_threads=num_threads(self._config),
            device_id=(self._device.index or 0) if on_gpu else None,
            prefetch_queue_depth=self._in_flight,
        )

        def given(name: str, dtype: Any, ndim: int) -> Any:
            return fn.external_source(name=name, dtype=dtype, ndim=ndim)

        with pipeline:
            encoded = given("encoded", types.UINT8, 1)
            decoder = {"device": "mixed", "hw_decoder_load": self._config.hw_decoder_load} if on_gpu else {}
            images = fn.decoders.image_slice(
                encoded,
                start=given("start", types.INT32, 1),
                shape=given("shape", types.INT32, 1),
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
                **decoder,
            )
            images = fn.resize(
                images,
                size=[size, size],
                roi_start=given("from", types.FLOAT, 1),
                roi_end=given("to", types.FLOAT, 1),
                interp_type=types.INTERP_CUBIC,
                antialias=True,
            )
            if self._has_brightness:
                brightness = given("brightness", types.FLOAT, 0)
                images = dali.math.floor(dali.math.clamp(images * brightness, 0.0, 255.0))
            images = fn.crop_mirror_normalize(
                images,
                dtype=types.FLOAT,
                output_layout="CHW",
                mirror=given("mirror", types.INT32, 0),
                mean=[255 * mean for mean in self._config.mean],
                std=[255 * std for std in self._config.std],
            )
            pipeline.set_outputs(images, fn.peek_image_shape(encoded, adjust_orientation=False))
        pipeline.build()
        self._fill_queue(pipeline)
        return pipeline

    def _finish(self, request: _Request) -> Batch | None:
        reasons: dict[int, str] = {}
        for row, file in enumerate(request.files):
            error = file.exception()
            if isinstance(error, BadImage):
                reasons[row] = str(error)
            elif error is not None:
                raise error
        if request.pipeline is self._pipeline:
            images = self._collect(request, reasons)
        else:
            images = None
        if images is None:
            images = self._by_pillow(request, reasons)
        for row, reason in reasons.items():
            self._bad.add(int(request.id_B[row]), reason)
        return make_batch(self._index, request.id_B, images, list(reasons))

    def _collect(self, request: _Request, reasons: dict[int, str]) -> torch.Tensor | None:
        """The pipeline's next batch, or None when a file made it fail (which leaves it unusable)."""
        try:
            pixels, shapes = self._pipeline.outputs()
        except RuntimeError:
            self._pipeline = None
            return None
        shape_B3 = np.asarray(shapes.as_tensor())
        for row, sample_id in enumerate(request.id_B):
            if row not in reasons and self._sees_whole_file(int(sample_id)):
                try:
                    require_size(self._index, int(sample_id), int(shape_B3[row, 1]), int(shape_B3[row, 0]))
                except BadImage as error:
                    reasons[row] = str(error)
        if self._device.type == "cuda":
            return torch.from_dlpack(pixels.as_tensor()).clone()
        return torch.from_numpy(np.array(pixels.as_tensor()))

    def _by_pillow(self, request: _Request, reasons: dict[int, str]) -> torch.Tensor:
        """The batch that DALI gave up on; finds out which of its files is bad."""
        images = torch.zeros(len(request.id_B), 3, request.plan.size, request.plan.size)
        for row, sample_id in enumerate(request.id_B):
            if row in reasons:
                continue
            try:
                image = decode_expected(self._index, int(sample_id), self._config.exif_orientation)
            except BadImage as error:
                reasons[row] = str(error)
            else:
                fill_normalised(images[row].numpy(), render(image, request.plan, row), self._config)
        return images.to(self._device)
