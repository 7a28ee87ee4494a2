"""Class Gaussians: streamed exact moments, factored once, sampled for classifier alignment."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slca_fast.methods import gaussians_file
from slca_fast.methods.gaussians_factors import CholeskyFactors, Factors, LowRankFactors, only, with_small_ones_joined
from slca_fast.methods.gaussians_moments import moments_of_covariances
from slca_fast.methods.gaussians_table import MomentsTable, rows_by_class


def _full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a caller's autocast from rounding statistics to 16 bits."""

    @functools.wraps(method)
    def run(self: ClassGaussians, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


class ClassGaussians:
    """One Gaussian N(mean_c, covariance_c + ridge I) per class (SLCA, arXiv 2303.05118, section 3.3).

    Features stream in by ``update`` in any order and chunking, on any device and in any floating dtype;
    counts, means and centred scatters are exact up to the rounding of ``accumulate_dtype`` (Chan's merge). A
    class of at most D/2 rows is kept as a low-rank root of its scatter (rotated, so no image's feature is
    kept), a larger one as a packed triangle. Every class is factored once, when it is first sampled, and
    again only if it is updated. A class of one row gets zero covariance: its samples spread by the ridge
    alone (``flags`` names such classes).

    Args:
        feature_dim: D >= 1.
        ridge: added to the diagonal of every covariance inside the factor only, >= 0.
        accumulate_dtype: float64 or float32, of the scatters; the means are float64 always.
        factor_dtype: float64 or float32, in which factors are computed; they are kept in float32.
        storage: ``"auto"`` as above, or ``"dense"``: packed triangles and Cholesky factors for all classes.
    """

    def __init__(
        self,
        feature_dim: int,
        ridge: float = 1e-4,
        *,
        accumulate_dtype: torch.dtype = torch.float64,
        factor_dtype: torch.dtype = torch.float64,
        storage: str = "auto",
    ) -> None:
        if not isinstance(feature_dim, int | np.integer) or isinstance(feature_dim, bool) or feature_dim < 1:
            raise ValueError(f"feature_dim must be an integer >= 1, got {feature_dim!r}")
        if not (ridge >= 0 and math.isfinite(ridge)):
            raise ValueError(f"ridge must be finite and >= 0, got {ridge}")
        for name, dtype in (("accumulate_dtype", accumulate_dtype), ("factor_dtype", factor_dtype)):
            if dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} must be torch.float32 or torch.float64, got {dtype}")
        if storage not in ("auto", "dense"):
            raise ValueError(f"storage must be 'auto' or 'dense', got {storage!r}")
        self.feature_dim, self.ridge = int(feature_dim), float(ridge)
        self.accumulate_dtype, self.factor_dtype, self.storage = accumulate_dtype, factor_dtype, storage
        max_rank = feature_dim // 2 if storage == "auto" and feature_dim > 1 else -1
        self._moments = MomentsTable(self.feature_dim, accumulate_dtype, max_rank)
        self._factors: list[Factors] = []

    @property
    def num_classes(self) -> int:
        """Largest class id seen, plus one; ids in between may be empty."""
        return len(self._moments)

    @property
    def device(self) -> torch.device:
        """Where the moments are: the device of the first features, the CPU before any."""
        return self._moments.device or torch.device("cpu")

    @property
    def counts(self) -> Tensor:
        """[C] int64 number of rows of every class, on the CPU."""
        return torch.tensor(self._moments.counts(), dtype=torch.int64)

    @property
    def means(self) -> Tensor:
        """[C, D] float64; zeros for empty classes."""
        return self._moments.means()

    @_full_precision
    def covariance(self, class_id: int) -> Tensor:
        """[D, D] unbiased covariance of one class, without the ridge, in accumulate_dtype; zeros for one row.

        Raises: ValueError for a class without rows.
        """
        return self._moments.of([class_id])[class_id].covariance()

    @_full_precision
    def update(self, features_ND: Tensor, labels_N: Tensor, *, check: bool | None = None) -> None:
        """Adds rows. features_ND [N, D] floating point, labels_N [N] integers >= 0 and below
        MAX_CLASSES, in any order.

        ``check``: raise ValueError naming the class of a NaN or infinite feature, which costs a synchronisation on
        CUDA; None: on the CPU only. Raises: ValueError for wrong shapes, dtypes or labels out of range.
        """
        rows = rows_by_class(features_ND, labels_N, self.feature_dim, self._moments.device, check)
        self._factors = list(only(self._factors, lambda c: c not in rows))
        self._moments.add(rows)

    def sample(
        self,
        num_per_class: int,
        generator: torch.Generator | None = None,
        mean_scale_C: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        classes: Sequence[int] | None = None,
        backend: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        """Draws features: (features [C * num_per_class, D] float32, labels [C * num_per_class] int64), class
        by class.

        The random numbers are counter-based, keyed by (seed, class, sample, dimension): the same on any
        device (but for rounding) and for any subset of ``classes``. ``seed`` names them; else ``generator``
        (else torch's default) draws one seed. ``mean_scale_C`` [num_classes] multiplies the means (SLCA's
        mean scaling).

        Raises: ValueError for a class without rows, named twice, or whose covariance cannot be factored, or a wrong
        mean_scale_C.
        """
        wanted = list(range(self.num_classes)) if classes is None else [int(c) for c in classes]
        if num_per_class < 0:
            raise ValueError(f"num_per_class must be >= 0, got {num_per_class}")
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"classes must differ from each other, got {wanted}; raise num_per_class for more rows")
        moments = self._moments.of(wanted)
        if mean_scale_C is not None and mean_scale_C.shape != (self.num_classes,):
            raise ValueError(f"mean_scale_C must have shape ({self.num_classes},), got {tuple(mean_scale_C.shape)}")
        if seed is None:
            source = generator.device if generator is not None else "cpu"
            seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=source)
        if isinstance(seed, Tensor):
            seed = seed.to(self.device)
        self.factorize()
        features = torch.empty(len(wanted), num_per_class, self.feature_dim, device=self.device)
        place = {c: i for i, c in enumerate(wanted)}
        for group in only(self._factors, place.__contains__):
            class_id = torch.tensor(group.classes, dtype=torch.int64, device=self.device)
            mean_GD = torch.stack([moments[c].mean for c in group.classes])
            if mean_scale_C is not None:
                mean_GD = mean_GD * mean_scale_C.to(self.device, torch.float64)[class_id, None]
            drawn = group.draw(mean_GD.float(), class_id, num_per_class, seed, backend)
            features[torch.tensor([place[c] for c in group.classes], device=self.device)] = drawn
        labels = torch.tensor(wanted, dtype=torch.int64, device=self.device).repeat_interleave(num_per_class)
        return features.flatten(0, 1), labels

    @_full_precision
    def factorize(self) -> None:
        """Factors every class that has rows and no factor yet; ``sample`` calls it.

        Raises: ValueError naming a class whose covariance no added ridge could factor (it is not finite).
        """
        self._moments.rotate()
        done = {c for group in self._factors for c in group.classes}
        todo = {c: m for c, m in self._moments.present().items() if c not in done}
        if thin := {c: m for c, m in todo.items() if m.is_low_rank}:
            self._factors.append(LowRankFactors.of(thin, self.ridge))
        if dense := {c: m for c, m in todo.items() if not m.is_low_rank}:
            self._factors.append(CholeskyFactors.of(dense, self.ridge, self.factor_dtype))

    def flags(self) -> dict[int, tuple[str, ...]]:
        """What a report should say about a class: no rows, one row, no more rows than dimensions, ridge added."""
        added = {c: ridge for group in self._factors for c, ridge in zip(group.classes, group.added_ridge)}
        notes = {c: _notes(n, self.feature_dim, added.get(c, 0)) for c, n in enumerate(self._moments.counts())}
        return {c: found for c, found in notes.items() if found}

    @_full_precision
    def extended(self, other: ClassGaussians) -> ClassGaussians:
        """A new value with the rows of both: new classes are appended, common ones merged. Factors are kept.

        Raises: ValueError when feature_dim differs.
        """
        if other.feature_dim != self.feature_dim:
            raise ValueError(f"feature_dim is {self.feature_dim} here and {other.feature_dim} in the other")
        result = self._with(self._moments.extended(other._moments))
        common = self._moments.present().keys() & other._moments.present().keys()
        factors = list(only(self._factors, lambda c: c not in common))
        if other.device == result.device and other.ridge == self.ridge and other.factor_dtype == self.factor_dtype:
            factors += only(other._factors, lambda c: c not in common)
        result._factors = with_small_ones_joined(factors)
        return result

    def select(self, first: int, end: int) -> ClassGaussians:
        """A value that holds the classes first .. end - 1 only, under their own ids; those below are empty."""
        if not 0 <= first <= end <= self.num_classes:
            raise ValueError(f"classes {first} to {end} are not among 0 to {self.num_classes}")
        result = self._with(self._moments.select(first, end))
        result._factors = list(only(self._factors, lambda c: first <= c < end))
        return result

    def to(self, device: torch.device | str) -> ClassGaussians:
        """The same value with its moments and factors on ``device``."""
        result = self._with(self._moments.to(device))
        result._factors = [group.to(device) for group in self._factors]
        return result

    @_full_precision
    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that was measured, by sorted name, on the CPU: what ``save`` writes and a checksum covers."""
        self._moments.rotate()
        return gaussians_file.tensors_of(self._moments.present(), self.feature_dim, self.accumulate_dtype)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file whose JSON header holds the settings and a SHA-256; atomic, mode by umask."""
        header = gaussians_file.header_of(self._settings(), self.num_classes)
        gaussians_file.write(Path(path), self.state_tensors(), header)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> ClassGaussians:
        """Reads what ``save`` wrote. Raises: ValueError naming the path for a damaged or foreign file."""
        return cls.from_state(*gaussians_file.read(path), device)

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], header: dict[str, Any], device: torch.device | str = "cpu"
    ) -> ClassGaussians:
        """The value of ``state_tensors`` and the settings of ``save``'s header."""
        result = cls(**gaussians_file.settings_of(header))
        moments = gaussians_file.moments_of(tensors, header["num_classes"], device)
        result._moments = result._moments.filled(moments, torch.device(device))
        return result

    @classmethod
    def from_moments(
        cls,
        means: Tensor | np.ndarray,
        covariances: Tensor | np.ndarray,
        counts: Tensor | np.ndarray | Sequence[int] | None = None,
        ridge: float = 1e-4,
        **settings: Any,
    ) -> ClassGaussians:
        """From another code base's statistics: means [C, D], unbiased covariances [C, D, D], counts [C].

        Without ``counts`` every class is taken to have D + 1 rows, which weighs it in a later ``update``
        only. Pass ridge=0 when the covariances hold the ridge already. Raises: ValueError for shapes or
        values that do not fit.
        """
        means, covariances = torch.as_tensor(means), torch.as_tensor(covariances)
        if means.ndim != 2 or covariances.shape != (*means.shape, means.shape[-1]):
            raise ValueError(
                f"means must be [C, D] and covariances [C, D, D], got {tuple(means.shape)} and "
                f"{tuple(covariances.shape)}"
            )
        num_classes, dim = means.shape
        counts = [dim + 1] * num_classes if counts is None else [int(n) for n in counts]
        if len(counts) != num_classes or min(counts, default=0) < 0:
            raise ValueError(f"counts must be {num_classes} numbers >= 0, got {counts}")
        result = cls(dim, ridge, **settings)
        moments = moments_of_covariances(means, covariances, counts, result.accumulate_dtype)
        result._moments = result._moments.filled(moments, means.device)
        return result

    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("feature_dim", "ridge", "accumulate_dtype", "factor_dtype", "storage")
        return {name: getattr(self, name) for name in names}

    def _with(self, moments: MomentsTable) -> ClassGaussians:
        """The same settings with other moments, not factored yet."""
        result = ClassGaussians(**self._settings())
        result._moments = moments
        return result


def _notes(count: int, dim: int, added_ridge: float) -> tuple[str, ...]:
    """What a report should say about one class."""
    notes = []
    if count == 0:
        notes.append("no rows: cannot be sampled")
    elif count == 1:
        notes.append("one row: zero covariance, the ridge alone spreads its samples")
    elif count <= dim:
        notes.append(f"{count} rows for {dim} dimensions: singular but for the ridge")
    if added_ridge > 0:
        notes.append(f"ridge {added_ridge:.3g} added to factor it")
    return tuple(notes)
