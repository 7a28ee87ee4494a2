"""Factors of class covariances, from which features are drawn: a batch of classes of one kind to a tensor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slca_fast.kernels.gaussian_sampling.packing import pack_lower
from slca_fast.methods.gaussians_moments import ClassMoments, matrices_at_a_time
from slca_fast.ops.gaussian_sampling import cholesky_factor, sample_gaussians, sample_low_rank

_MOST_JOINED_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Factors(ABC):
    """Of the covariances plus ridge I of several classes."""

    classes: tuple[int, ...]
    factor: Tensor
    """One entry a class, float32."""
    ridge: float
    added_ridge: tuple[float, ...]
    """What more it took to factor each class, mostly 0."""

    @property
    def num_bytes(self) -> int:
        return self.factor.numel() * self.factor.element_size()

    @abstractmethod
    def draw(self, mean_GD: Tensor, class_id_G: Tensor, num_per_class: int, seed: int | Tensor, backend: str) -> Tensor:
        """[G, num_per_class, D] float32 features of all these classes, whose means and ids are in their order."""

    def at(self, slots: list[int]) -> Factors:
        """The factors of the classes at these slots only."""
        classes, added_ridge = (tuple(values[i] for i in slots) for values in (self.classes, self.added_ridge))
        return replace(self, classes=classes, factor=self.factor[slots], added_ridge=added_ridge)

    def to(self, device: torch.device | str) -> Factors:
        return replace(self, factor=self.factor.to(device))

    def joins(self, other: Factors) -> bool:
        """Whether the two are alike, and so small that a call for each would take longer than its arithmetic."""
        alike = (type(self), self.ridge, self.factor.shape[1:]) == (type(other), other.ridge, other.factor.shape[1:])
        return alike and self.num_bytes + other.num_bytes <= _MOST_JOINED_BYTES

    def joined(self, other: Factors) -> Factors:
        """The classes of both."""
        classes, added_ridge = self.classes + other.classes, self.added_ridge + other.added_ridge
        return replace(self, classes=classes, factor=torch.cat([self.factor, other.factor]), added_ridge=added_ridge)


@dataclass(frozen=True, eq=False)
class LowRankFactors(Factors):
    """Rows R_c [K, D], padded by zeros, with covariance_c = R_c^T R_c; ``factor`` is [G, K, D]."""

    @classmethod
    def of(cls, moments: Mapping[int, ClassMoments], ridge: float) -> LowRankFactors:
        """Of low-rank moments by class, at least one."""
        mean = next(iter(moments.values())).mean
        longest = max(m.rank for m in moments.values())
        factor = torch.zeros(len(moments), longest, len(mean), device=mean.device)
        for slot, m in enumerate(moments.values()):
            factor[slot, : m.rank] = m.scatter / math.sqrt(max(m.count - 1, 1))
        return cls(tuple(moments), factor, ridge, (0.0,) * len(moments))

    def draw(self, mean_GD: Tensor, class_id_G: Tensor, num_per_class: int, seed: int | Tensor, backend: str) -> Tensor:
        scale = math.sqrt(self.ridge)
        return sample_low_rank(mean_GD, self.factor, scale, num_per_class, seed, backend, class_id_C=class_id_G)


@dataclass(frozen=True, eq=False)
class CholeskyFactors(Factors):
    """Packed lower triangles L_c with covariance_c + (ridge + added_ridge_c) I = L_c L_c^T; ``factor`` is [G, R, P]."""

    @classmethod
    def of(cls, moments: Mapping[int, ClassMoments], ridge: float, dtype: torch.dtype) -> CholeskyFactors:
        """Factored in ``dtype``, many classes to a batch; at least one class.

        Raises: ValueError naming a class whose covariance no added ridge could factor (it is not finite).
        """
        classes = tuple(moments)
        step = matrices_at_a_time(moments[classes[0]].dim)
        packed: list[Tensor] = []
        added_ridge: list[float] = []
        for chunk in (classes[i : i + step] for i in range(0, len(classes), step)):
            covariance = torch.stack([moments[c].covariance().to(dtype) for c in chunk])
            factor, added = cholesky_factor(covariance, ridge)
            for c, extra in zip(chunk, added.tolist()):
                if math.isnan(extra):
                    reason = "it is not finite or far from positive definite"
                    raise ValueError(f"the covariance of class {c} cannot be factored: {reason}")
                added_ridge.append(extra)
            packed.append(pack_lower(factor).float())
        return cls(classes, torch.cat(packed), ridge, tuple(added_ridge))

    def draw(self, mean_GD: Tensor, class_id_G: Tensor, num_per_class: int, seed: int | Tensor, backend: str) -> Tensor:
        return sample_gaussians(mean_GD, self.factor, num_per_class, seed, backend, class_id_C=class_id_G)


def only(groups: Iterable[Factors], wanted: Callable[[int], bool]) -> Iterator[Factors]:
    """The factors of the wanted classes; a group that keeps all its classes is not copied."""
    for group in groups:
        slots = [i for i, c in enumerate(group.classes) if wanted(c)]
        if slots:
            yield group if len(slots) == len(group.classes) else group.at(slots)


def with_small_ones_joined(groups: Iterable[Factors]) -> list[Factors]:
    """The same factors in few groups: as a binary counter does, so that no factor is copied more than a few times."""
    result: list[Factors] = []
    for group in groups:
        while result and len(result[-1].classes) <= len(group.classes) and result[-1].joins(group):
            group = result.pop().joined(group)
        result.append(group)
    return result
