"""What every backend yields, and what it does with a file that turns out bad only when decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from slca_fast.data.index import ImageIndex, Problem
from slca_fast.data.plan import AugmentPlan
from slca_fast.errors import DataError

PlanOf = Callable[[np.ndarray], AugmentPlan]
"""Sample ids [B] -> plan of B images."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B images, ready for the model."""

    images: torch.Tensor
    """float32 [B, 3, S, S], normalised; on the CPU, or on the GPU that made them."""
    label_B: torch.Tensor
    """int64 [B], position in the index's class_names."""
    sample_id_B: torch.Tensor
    """int64 [B], position in the index."""


class Source(Protocol):
    """Decodes and augments images of one index."""

    backend: str
    """Its name in reports."""
    reason: str
    """Why this backend, in words."""

    @property
    def problems(self) -> list[Problem]:
        """Files left out at run time (policy quarantine)."""
        ...

    def batches(self, sample_id_batches: Iterable[np.ndarray], plan_of: PlanOf) -> Iterator[Batch]:
        """One Batch per array of sample ids, in that order.

        A file that cannot be decoded raises DataError with its path; under the policy quarantine its row is left
        out of the batch (and a batch without any row is skipped).
        """
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...


class RuntimeProblems:
    """The policy for files that the preflight let pass and that cannot be decoded after all."""

    def __init__(self, index: ImageIndex, policy: str) -> None:
        self.found: list[Problem] = []
        self._index, self._policy = index, policy
        self._known: set[str] = set()

    def add(self, sample_id: int, reason: str) -> None:
        """Raise DataError with the path (policy fail), or remember the file once."""
        path = self._index.paths[sample_id]
        if self._policy == "fail":
            raise DataError(f"{self._index.root / path}: {reason}")
        if path not in self._known:
            self._known.add(path)
            self.found.append(Problem(path, reason))


def make_batch(index: ImageIndex, sample_id_B: np.ndarray, images: torch.Tensor, bad_rows: list[int]) -> Batch | None:
    """The batch without its bad rows, or None when none is left."""
    if bad_rows:
        good = np.setdiff1d(np.arange(len(sample_id_B)), bad_rows)
        if not len(good):
            return None
        sample_id_B, images = sample_id_B[good], images[torch.from_numpy(good).to(images.device)]
    return Batch(images, torch.from_numpy(index.label_N[sample_id_B]), torch.from_numpy(sample_id_B))
