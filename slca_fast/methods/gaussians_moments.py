"""Moments of one class: count, mean and centred scatter, low rank while its rows are few, else a packed triangle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slca_fast.kernels.gaussian_sampling.packing import pack_lower, unpack_symmetric
from slca_fast.ops.class_moments import class_moments

MAX_DENSE_BYTES = 1 << 29
"""Most bytes of full [D, D] matrices that exist at a time while measuring or factoring."""


def matrices_at_a_time(dim: int, bytes_per_number: int = 8) -> int:
    """How many [dim, dim] matrices fit into MAX_DENSE_BYTES, at least one."""
    return max(1, MAX_DENSE_BYTES // (bytes_per_number * dim**2))


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """What is known of a class with rows. Its tensors are never written to, so that values can share them."""

    count: int
    """Number of rows, >= 1."""
    mean: Tensor
    """[D] float64."""
    scatter: Tensor
    """Centred: rows [K, D] with scatter = rows^T rows, or a packed triangle of [D, D]; float64 or float32."""
    rotated: bool = False
    """Whether a low-rank scatter went through ``rotate``: none of its rows is an image's feature."""

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def is_low_rank(self) -> bool:
        """A packed triangle has ceil(D/2) columns, rows have D."""
        return self.dim > 1 and self.scatter.shape[-1] == self.dim

    @property
    def rank(self) -> int:
        """What the rank of the scatter cannot exceed: its rows, or D of a triangle."""
        return len(self.scatter) if self.is_low_rank else self.dim

    def covariance(self) -> Tensor:
        """[D, D] unbiased, in the scatter's dtype; zeros for one row."""
        full = self.scatter.mT @ self.scatter if self.is_low_rank else unpack_symmetric(self.scatter)
        return full / max(self.count - 1, 1)

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> ClassMoments:
        """On ``device``, the scatter in ``dtype``; None: as it is."""
        return replace(self, mean=self.mean.to(device=device), scatter=self.scatter.to(device=device, dtype=dtype))

    def merged(self, other: ClassMoments, max_rank: int) -> ClassMoments:
        """Moments of both sets of rows, low rank up to ``max_rank`` (Chan, Golub and LeVeque 1983, pairwise update)."""
        total = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / total)
        delta = (delta * math.sqrt(self.count * other.count / total)).to(self.scatter.dtype)[None]
        if self.rank + other.rank + 1 <= max_rank:
            return ClassMoments(total, mean, torch.cat([self.scatter, other.scatter, delta]))
        packed = [pack_lower(m.scatter.mT @ m.scatter) if m.is_low_rank else m.scatter for m in (self, other)]
        return ClassMoments(total, mean, packed[0] + packed[1] + pack_lower(delta.mT @ delta))


def low_rank_moments(rows_ND: Tensor, dtype: torch.dtype) -> ClassMoments:
    """Moments of one class's rows [N, D], N >= 1: the scatter is the centred rows themselves, in ``dtype``."""
    rows_ND = rows_ND.double()
    mean = rows_ND.mean(0)
    return ClassMoments(len(rows_ND), mean, (rows_ND - mean).to(dtype))


def packed_moments(parts: Sequence[Tensor], dtype: torch.dtype) -> Iterator[ClassMoments]:
    """Moments of every class's rows [N_c, D], N_c >= 1, packed, many classes to a batch."""
    step = matrices_at_a_time(parts[0].shape[1]) if parts else 1
    for start in range(0, len(parts), step):
        chunk = parts[start : start + step]
        rows = torch.cat(list(chunk))
        sizes = torch.tensor([len(part) for part in chunk], device=rows.device)
        slots = torch.arange(len(chunk), device=rows.device).repeat_interleave(sizes)
        _, mean, scatter = class_moments(rows, slots, len(chunk), accumulate_dtype=dtype)
        for part, mean_D, packed in zip(chunk, mean.double(), pack_lower(scatter)):
            yield ClassMoments(len(part), mean_D.clone(), packed.clone())


def rotate(moments: Sequence[ClassMoments]) -> Iterator[ClassMoments]:
    """Low-rank moments with rows X turned into U^T X, U the eigenvectors of X X^T, many classes to a batch.

    The scatter stays the same, in as many rows as it has rank, and none of them is an image's feature.
    """
    # At most D/2 rows of float64: half a matrix.
    step = matrices_at_a_time(moments[0].dim, bytes_per_number=4) if moments else 1
    for chunk in (moments[i : i + step] for i in range(0, len(moments), step)):
        longest = max(m.rank for m in chunk)
        mean = chunk[0].mean
        rows = torch.zeros(len(chunk), longest, len(mean), dtype=torch.float64, device=mean.device)
        for slot, m in enumerate(chunk):
            rows[slot, : m.rank] = m.scatter
        _, vectors = torch.linalg.eigh(rows @ rows.mT)
        rotated = vectors.flip(-1).mT @ rows
        # Eigenvectors come with an arbitrary sign; samples should not.
        largest = rotated.gather(-1, rotated.abs().argmax(-1, keepdim=True))
        rotated = torch.where(largest < 0, -rotated, rotated).to(chunk[0].scatter.dtype)
        for slot, m in enumerate(chunk):
            rank = max(min(m.rank, m.count - 1), 0)
            yield replace(m, scatter=rotated[slot, :rank].clone(), rotated=True)


def moments_of_covariances(
    means: Tensor, covariances: Tensor, counts: Sequence[int], dtype: torch.dtype
) -> list[ClassMoments | None]:
    """Packed moments of given means [C, D] and unbiased covariances [C, D, D]; None for a class without rows.

    Raises: ValueError naming a class whose mean or covariance is not finite.
    """
    found: list[ClassMoments | None] = [None] * len(counts)
    for c, count in enumerate(counts):
        if count == 0:
            continue
        covariance = covariances[c].detach().to(means.device, dtype)
        if not (means[c].isfinite().all() and covariance.isfinite().all()):
            raise ValueError(f"the mean or covariance of class {c} holds NaN or infinity")
        found[c] = ClassMoments(count, means[c].detach().double(), pack_lower(covariance * (count - 1)))
    return found
