"""Keeps decoded images in memory, at their original resolution, and augments them from there.

Each image is decoded once, when first asked for, into one ragged uint8 buffer on the host or the GPU; later epochs
only run the ``augment`` op, whose pixels are Pillow's. Images that do not fit make room for the ones asked for now;
a set that does not fit as a whole is streamed by another source, and the reason says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch

from slca_fast.config import DataConfig
from slca_fast.data.batch import Batch, PlanOf, RuntimeProblems, Source, make_batch
from slca_fast.data.images import BadImage
from slca_fast.data.index import ImageIndex
from slca_fast.data.jpeg import decoded_pixels
from slca_fast.data.pillow import num_threads
from slca_fast.data.plan import AugmentPlan
from slca_fast.ops.augment import augment

_AHEAD_BATCHES = 3
_HOST_SHARE, _GPU_SHARE = 0.5, 0.4
_NOT_HELD = -1


def decoded_bytes(index: ImageIndex) -> np.ndarray:
    """Size of every decoded image in bytes, int64 [N]."""
    return 3 * index.height_N.astype(np.int64) * index.width_N.astype(np.int64)


def budget_bytes(config: DataConfig, device: torch.device) -> int:
    """Bytes that caches on ``device`` may take together: as configured, or a share of what is free now."""
    if config.cache_budget_gb is not None:
        return int(config.cache_budget_gb * 1e9)
    if device.type == "cuda":
        return int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(_HOST_SHARE * _available_host_bytes())


def _available_host_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists():
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    return max(available, 0)


class CacheSource:
    """Resident images of one index, in at most ``capacity`` bytes on ``device``."""

    backend = "cache"

    def __init__(
        self,
        index: ImageIndex,
        config: DataConfig,
        device: torch.device | str,
        capacity: int,
        streaming: Source,
        reason: str = "asked for",
    ) -> None:
        self.reason = reason
        self._index, self._config = index, config
        self._bad = RuntimeProblems(index, config.policy)
        self._streaming = streaming
        self._bytes_N = decoded_bytes(index)
        capacity = min(capacity, int(self._bytes_N.sum()))
        # Host pages are taken only when written, so a large buffer costs what it holds.
        self._buffer_U8 = torch.empty(capacity, dtype=torch.uint8, device=device)
        self._host_U8 = self._buffer_U8.numpy() if self._buffer_U8.device.type == "cpu" else None
        self._offset_N = np.full(index.num_images, _NOT_HELD, dtype=np.int64)
        self._used, self._num_open = 0, 0
        self._pool = ThreadPoolExecutor(num_threads(config), thread_name_prefix="cache")

    @property
    def problems(self) -> list:
        """Files left out at run time."""
        return self._bad.found + self._streaming.problems

    @property
    def held_bytes(self) -> int:
        """Bytes of decoded images held now."""
        return int(self._bytes_N[self._offset_N != _NOT_HELD].sum())

    def batches(self, sample_id_batches: Iterable[np.ndarray], plan_of: PlanOf) -> Iterator[Batch]:
        """See batch.Source."""
        chunks = [np.asarray(id_B, dtype=np.int64) for id_B in sample_id_batches]
        if not self._make_room(chunks):
            yield from self._streaming.batches(chunks, plan_of)
            return
        upcoming = iter(chunks)
        decoding: deque[dict[int, Future]] = deque()
        self._num_open += 1
        try:
            for k, id_B in enumerate(chunks):
                while len(decoding) <= _AHEAD_BATCHES and k + len(decoding) < len(chunks):
                    decoding.append(self._decode_missing(next(upcoming)))
                self._hold(decoding[0])
                decoding.popleft()
                batch = self._batch(id_B, plan_of(id_B))
                if batch is not None:
                    yield batch
        finally:
            self._num_open -= 1
            self._abandon(decoding)

    def close(self) -> None:
        """See batch.Source."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._streaming.close()
        self._buffer_U8, self._host_U8 = self._buffer_U8[:0].clone(), None
        self._offset_N[:] = _NOT_HELD
        self._used = 0

    def _make_room(self, chunks: list[np.ndarray]) -> bool:
        """Whether all of these images can be resident at once; forgets others if they must go."""
        wanted = np.unique(np.concatenate(chunks)) if chunks else np.empty(0, dtype=np.int64)
        missing = wanted[self._offset_N[wanted] == _NOT_HELD]
        capacity = len(self._buffer_U8)
        if self._bytes_N[missing].sum() <= capacity - self._used:
            return True
        num_bytes = int(self._bytes_N[wanted].sum())
        if num_bytes > capacity or self._num_open:
            self.reason = (
                f"{len(wanted)} images of {num_bytes / 1e9:.2f} GB decoded do not fit into the cache of "
                f"{capacity / 1e9:.2f} GB: streamed by {self._streaming.backend}"
            )
            return False
        self._offset_N[:] = _NOT_HELD
        self._used = 0
        return True

    def _decode_missing(self, id_B: np.ndarray) -> dict[int, Future]:
        """Start decoding what is not held; an image asked for twice is decoded once."""
        started = {}
        for sample_id in np.unique(id_B[self._offset_N[id_B] == _NOT_HELD]).tolist():
            offset, self._used = self._used, self._used + int(self._bytes_N[sample_id])
            self._offset_N[sample_id] = offset
            started[sample_id] = self._pool.submit(self._decode, sample_id, offset)
        return started

    def _decode(self, sample_id: int, offset: int) -> np.ndarray | None:
        pixels = decoded_pixels(self._index, sample_id, self._config.exif_orientation)
        if self._host_U8 is None:
            return pixels
        self._host_U8[offset : offset + len(pixels)] = pixels
        return None

    def _hold(self, decoding: dict[int, Future]) -> None:
        for sample_id in list(decoding):
            try:
                pixels = decoding[sample_id].result()
            except BadImage as error:
                self._offset_N[sample_id] = _NOT_HELD
                self._bad.add(sample_id, str(error))
            else:
                if pixels is not None:
                    offset = self._offset_N[sample_id]
                    self._buffer_U8[offset : offset + len(pixels)].copy_(torch.from_numpy(pixels))
            del decoding[sample_id]

    def _abandon(self, decoding: Iterable[dict[int, Future]]) -> None:
        """What nobody waits for any more is not held; its room comes back when room is made."""
        left = {sample_id: future for batch in decoding for sample_id, future in batch.items()}
        for sample_id, future in left.items():
            future.cancel()
            self._offset_N[sample_id] = _NOT_HELD
        wait([future for future in left.values() if not future.cancelled()])

    def _batch(self, id_B: np.ndarray, plan: AugmentPlan) -> Batch | None:
        held_B = self._offset_N[id_B] != _NOT_HELD
        if not held_B.all():
            id_B, plan = id_B[held_B], plan.take(held_B)
        if not len(id_B):
            return None
        images = augment(
            self._buffer_U8,
            self._offset_N[id_B],
            self._index.height_N[id_B],
            self._index.width_N[id_B],
            plan.crop_box_N4,
            plan.clip_box_N4,
            plan.flip_N,
            plan.brightness_N,
            plan.size,
            self._config.mean,
            self._config.std,
        )
        return make_batch(self._index, id_B, images, [])
