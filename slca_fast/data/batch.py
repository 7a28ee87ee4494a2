"""What every backend yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from slca_fast.data.plan import AugmentPlan

PlanOf = Callable[[np.ndarray], AugmentPlan]
"""Sample ids [B] -> plan of B images."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B images, ready for the model."""

    images: torch.Tensor
    """float32 [B, 3, S, S], normalised."""
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

    def batches(self, sample_id_batches: Iterable[np.ndarray], plan_of: PlanOf) -> Iterator[Batch]:
        """One Batch per array of sample ids, in that order; raises DataError with the path of a bad file."""
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...
