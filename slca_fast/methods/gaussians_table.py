"""The moments of all classes by id: rows stream in, and the tables of two data sets merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slca_fast.methods.gaussians_moments import ClassMoments, low_rank_moments, packed_moments, rotate

MAX_CLASSES = 1_000_000
"""Class ids lie below this: memory grows with the largest id, so a larger one is taken for a mistake."""


class MomentsTable:
    """Moments of the classes 0 .. C - 1, any of which may have no rows.

    Args:
        dim: D >= 1.
        dtype: of the scatters, float64 or float32.
        max_rank: scatters of at most so many rows are kept low rank; negative: none.
    """

    def __init__(self, dim: int, dtype: torch.dtype, max_rank: int) -> None:
        self.dim, self.dtype, self.max_rank = dim, dtype, max_rank
        self.device: torch.device | None = None
        """That of the first rows; None before any."""
        self._moments: list[ClassMoments | None] = []

    def filled(self, moments: Sequence[ClassMoments | None], device: torch.device | None) -> MomentsTable:
        """A table like this one of other moments: those of class 0, 1, .., None for a class without rows."""
        result = MomentsTable(self.dim, self.dtype, self.max_rank)
        result.device, result._moments = device, list(moments)
        return result

    def __len__(self) -> int:
        """C: the largest class id, plus one."""
        return len(self._moments)

    def present(self) -> dict[int, ClassMoments]:
        """Those of the classes with rows, by class id in ascending order."""
        return {c: m for c, m in enumerate(self._moments) if m is not None}

    def of(self, classes: Sequence[int]) -> dict[int, ClassMoments]:
        """Those of ``classes``. Raises: ValueError for a class without rows."""
        present = self.present()
        for c in classes:
            if not 0 <= c < len(self):
                raise ValueError(f"class {c} is not among the {len(self)} classes")
            if c not in present:
                raise ValueError(f"class {c} has no rows: update it before using its Gaussian")
        return {c: present[c] for c in classes}

    def counts(self) -> list[int]:
        """Number of rows of every class."""
        return [0 if m is None else m.count for m in self._moments]

    def means(self) -> Tensor:
        """[C, D] float64; zeros for classes without rows."""
        zero = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        return torch.stack([zero if m is None else m.mean for m in self._moments]) if self._moments else zero[None][:0]

    def add(self, rows: dict[int, Tensor]) -> None:
        """Adds the rows [N_c, D], N_c >= 1, of some classes, all on one device: the table's, if it has one."""
        if not rows:
            return
        self.device = self.device or next(iter(rows.values())).device
        self._grow(max(rows) + 1)
        thin = [c for c, part in rows.items() if self._rank(c) + len(part) + 1 <= self.max_rank]
        dense = [c for c in rows if c not in thin]
        for c in thin:
            self._merge(c, low_rank_moments(rows[c], self.dtype))
        for c, moments in zip(dense, packed_moments([rows[c] for c in dense], self.dtype)):
            self._merge(c, moments)

    def extended(self, other: MomentsTable) -> MomentsTable:
        """A new table with the rows of both, on this one's device and in its dtype."""
        result = self.filled(self._moments, self.device or other.device)
        result._grow(len(other))
        for c, moments in other.present().items():
            result._merge(c, moments.to(result.device, self.dtype))
        return result

    def select(self, first: int, end: int) -> MomentsTable:
        """A table of the classes first .. end - 1 only, under their own ids."""
        return self.filled([None] * first + self._moments[first:end], self.device)

    def to(self, device: torch.device | str) -> MomentsTable:
        """A table on ``device``."""
        return self.filled([None if m is None else m.to(device) for m in self._moments], torch.device(device))

    def rotate(self) -> None:
        """Rids low-rank scatters of rows that are features of images; the moments stay the same."""
        todo = {c: m for c, m in self.present().items() if m.is_low_rank and not m.rotated}
        for c, moments in zip(todo, rotate(list(todo.values()))):
            self._moments[c] = moments

    def _grow(self, num_classes: int) -> None:
        self._moments += [None] * (num_classes - len(self))

    def _rank(self, class_id: int) -> int:
        moments = self._moments[class_id]
        return 0 if moments is None else moments.rank

    def _merge(self, class_id: int, moments: ClassMoments) -> None:
        old = self._moments[class_id]
        self._moments[class_id] = moments if old is None else old.merged(moments, self.max_rank)


def rows_by_class(
    features_ND: Tensor, labels_N: Tensor, dim: int, device: torch.device | None, check: bool | None
) -> dict[int, Tensor]:
    """The rows [N_c, D] of every label in their order, on ``device`` (None: where they are), by ascending label.

    ``check``: refuse NaN and infinite features; None: on the CPU only. Raises: ValueError for those, for shapes other
    than [N, dim] and [N], for dtypes other than floating point and integer, and for labels that are no class ids.
    """
    if features_ND.ndim != 2 or features_ND.shape[1] != dim or not features_ND.is_floating_point():
        raise ValueError(
            f"features_ND must be floating point of shape [N, {dim}], got "
            f"{features_ND.dtype} of shape {tuple(features_ND.shape)}"
        )
    if labels_N.shape != features_ND.shape[:1] or labels_N.is_floating_point() or labels_N.dtype == torch.bool:
        raise ValueError(
            f"labels_N must be integers of shape ({features_ND.shape[0]},), got {labels_N.dtype} of "
            f"shape {tuple(labels_N.shape)}"
        )
    if len(labels_N) == 0:
        return {}
    features_ND = features_ND.detach().to(device or features_ND.device)
    labels_N = labels_N.to(features_ND.device, torch.int64)
    if check is None:
        check = features_ND.device.type == "cpu"
    if check and not (finite_N := features_ND.isfinite().all(1)).all():
        raise ValueError(
            f"features of class {int(labels_N[~finite_N][0])} hold NaN or infinity in "
            f"{int((~finite_N).sum())} of {len(labels_N)} rows"
        )
    class_P, local_N, count_P = torch.unique(labels_N, return_inverse=True, return_counts=True)
    classes = class_P.tolist()
    if classes[0] < 0:
        raise ValueError(f"labels_N must be >= 0, got {classes[0]}")
    if classes[-1] >= MAX_CLASSES:
        raise ValueError(f"labels_N must be below {MAX_CLASSES}, got {classes[-1]}; number the classes from 0")
    return dict(zip(classes, features_ND[torch.argsort(local_N, stable=True)].split(count_P.tolist())))
