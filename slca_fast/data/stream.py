"""The data set as a stream of tasks: which images a task trains on, is measured on and is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from slca_fast.config import DataConfig
from slca_fast.data.batch import Batch, PlanOf, Source
from slca_fast.data.index import ImageDataset, ImageIndex, Problem
from slca_fast.data.plan import AugmentPlan, epoch_order, test_plan, train_plan
from slca_fast.data.sources import open_source
from slca_fast.tasks import TaskPlan


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Some images of one split, by sample id, behind the backend that decodes them."""

    source: Source
    index: ImageIndex
    id_N: np.ndarray
    """Sample ids (positions in ``index``), int64 ``[N]``, ascending."""
    config: DataConfig
    batch_size: int

    @property
    def num_images(self) -> int:
        return len(self.id_N)

    @property
    def num_steps(self) -> int:
        return -(-self.num_images // self.batch_size)

    def epoch_batches(self, seed: int, task: int, epoch: int) -> list[np.ndarray]:
        """Sample ids of every (global) training batch of an epoch, in order: a function of the arguments only."""
        return self._cut(epoch_order(seed, task, epoch, self.id_N))

    def train_batches(self, seed: int, task: int, epoch: int, parts: list[np.ndarray]) -> Iterator[Batch | None]:
        """Images of each of ``parts`` (ids of a batch, or a rank's slice of it) under the training transform.

        None for a part of which no image is left: an empty slice, or quarantined files.
        """

        def plan_of(id_B: np.ndarray) -> AugmentPlan:
            return train_plan(
                self.config.recipe,
                self.config.image_size,
                seed,
                task,
                epoch,
                id_B,
                self.index.height_N[id_B],
                self.index.width_N[id_B],
            )

        return self._batches(parts, plan_of)

    def chunks(self) -> list[np.ndarray]:
        """The fixed pieces, by sample id, in which a pass over all images goes, whoever does which."""
        return self._cut(self.id_N)

    def test_batches(self, parts: list[np.ndarray] | None = None) -> Iterator[Batch | None]:
        """Images of each of ``parts`` (default: all ``chunks``) under the test transform; None as above."""

        def plan_of(id_B: np.ndarray) -> AugmentPlan:
            return test_plan(
                self.config.recipe,
                self.config.image_size,
                self.index.height_N[id_B],
                self.index.width_N[id_B],
            )

        return self._batches(self.chunks() if parts is None else parts, plan_of)

    def files(self, id_N: np.ndarray) -> str:
        """The paths of samples, for a message."""
        return ", ".join(str(self.index.path_of(int(i))) for i in id_N)

    def _batches(self, parts: list[np.ndarray], plan_of: PlanOf) -> Iterator[Batch | None]:
        batches = self.source.batches([part for part in parts if len(part)], plan_of)
        batch = None
        for part in parts:
            # A source leaves out a batch without any readable image: the next one then belongs to a later part.
            if len(part) and batch is None:
                batch = next(batches, None)
            if len(part) and batch is not None and int(batch.sample_id_B[0]) in part:
                yield batch
                batch = None
            else:
                yield None

    def _cut(self, id_N: np.ndarray) -> list[np.ndarray]:
        return [id_N[i : i + self.batch_size] for i in range(0, len(id_N), self.batch_size)]


class Stream:
    """Opens the backends of a data set's two splits and hands out each task's images; close it when done."""

    def __init__(
        self, dataset: ImageDataset, plan: TaskPlan, config: DataConfig, batch_size: int, device: torch.device
    ) -> None:
        self.plan, self.config, self.batch_size = plan, config, batch_size
        self._index = {name: _by_label(getattr(dataset, name), plan) for name in ("train", "test")}
        self._source = {name: open_source(index, config, device) for name, index in self._index.items()}

    @property
    def backend(self) -> str:
        return self._source["train"].backend

    @property
    def reason(self) -> str:
        return self._source["train"].reason

    def train(self, task: int) -> ImageSet:
        """Training images of ``task``'s labels."""
        return self._set("train", self.plan.offsets[task], self.plan.offsets[task + 1])

    def seen_test(self, task: int) -> ImageSet:
        """Test images of every label seen once ``task`` has arrived."""
        return self._set("test", 0, self.plan.offsets[task + 1])

    @property
    def problems(self) -> list[Problem]:
        """Files that turned out bad only when they were decoded, and were left out."""
        return [problem for source in self._source.values() for problem in source.problems]

    def close(self) -> None:
        for source in self._source.values():
            source.close()

    def _set(self, split: str, first: int, end: int) -> ImageSet:
        index = self._index[split]
        ids = np.flatnonzero((index.label_N >= first) & (index.label_N < end))
        return ImageSet(self._source[split], index, ids, self.config, self.batch_size)


def _by_label(index: ImageIndex, plan: TaskPlan) -> ImageIndex:
    return replace(index, label_N=plan.labels_of(index.label_N, index.domain_N))
