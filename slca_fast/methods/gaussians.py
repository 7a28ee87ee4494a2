"""Class Gaussians: streamed exact moments, factored once, sampled for classifier alignment."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from slca_fast.files import rename_durably, write_durably
from slca_fast.kernels.gaussian_sampling.packing import pack_lower, unpack_symmetric
from slca_fast.ops.class_moments import class_moments
from slca_fast.ops.gaussian_sampling import cholesky_factor, sample_gaussians, sample_low_rank

FORMAT = "slca_fast.ClassGaussians/1"
MAX_DENSE_BYTES = 1 << 29
"""Most bytes of full [D, D] matrices that exist at a time while measuring or factoring."""
MAX_CLASSES = 1_000_000
"""Class ids lie below this: memory grows with the largest id, so a larger one is taken for a mistake."""


def _full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a caller's autocast from rounding statistics to 16 bits."""

    @functools.wraps(method)
    def run(self: ClassGaussians, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


class _Factors:
    """Factors of several classes in one tensor: packed Cholesky [G, R, P] or low-rank rows [G, K, D], float32."""

    def __init__(self, classes: tuple[int, ...], factor: Tensor, low_rank: bool) -> None:
        self.classes, self.factor, self.low_rank = classes, factor, low_rank

    def without(self, dropped: set[int]) -> _Factors | None:
        keep = [i for i, c in enumerate(self.classes) if c not in dropped]
        if len(keep) == len(self.classes):
            return self
        return _Factors(tuple(self.classes[i] for i in keep), self.factor[keep], self.low_rank) if keep else None


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
        # Per class; tensors are replaced, never written to, so that values can share them.
        self._count: list[int] = []
        self._mean: list[Tensor | None] = []
        self._scatter: list[Tensor | None] = []
        self._rotated: list[bool] = []
        self._added_ridge: dict[int, float] = {}
        self._factors: list[_Factors] = []
        self._device: torch.device | None = None
        self._max_rank = feature_dim // 2 if storage == "auto" and feature_dim > 1 else -1

    @property
    def num_classes(self) -> int:
        """Largest class id seen, plus one; ids in between may be empty."""
        return len(self._count)

    @property
    def device(self) -> torch.device:
        """Where the moments are: the device of the first features, the CPU before any."""
        return self._device or torch.device("cpu")

    @property
    def counts(self) -> Tensor:
        """[C] int64 number of rows of every class, on the CPU."""
        return torch.tensor(self._count, dtype=torch.int64)

    @property
    def means(self) -> Tensor:
        """[C, D] float64; zeros for empty classes."""
        zero = torch.zeros(self.feature_dim, dtype=torch.float64, device=self.device)
        return torch.stack([zero if m is None else m for m in self._mean]) if self._mean else zero[None][:0]

    @_full_precision
    def covariance(self, class_id: int) -> Tensor:
        """[D, D] unbiased covariance of one class, without the ridge, in accumulate_dtype; zeros for one row.

        Raises: ValueError for a class without rows.
        """
        self._require_rows([class_id])
        scatter, count = self._scatter[class_id], self._count[class_id]
        return _full_scatter(scatter, self.feature_dim) / max(count - 1, 1)

    @_full_precision
    def update(self, features_ND: Tensor, labels_N: Tensor, *, check: bool | None = None) -> None:
        """Adds rows. features_ND [N, D] floating point, labels_N [N] integers >= 0 and below
        MAX_CLASSES, in any order.

        ``check``: raise ValueError naming the class of a NaN or infinite feature, which costs a synchronisation on
        CUDA; None: on the CPU only. Raises: ValueError for wrong shapes, dtypes or labels out of range.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != self.feature_dim or not features_ND.is_floating_point():
            raise ValueError(
                f"features_ND must be floating point of shape [N, {self.feature_dim}], got "
                f"{features_ND.dtype} of shape {tuple(features_ND.shape)}"
            )
        if labels_N.shape != features_ND.shape[:1] or labels_N.is_floating_point() or labels_N.dtype == torch.bool:
            raise ValueError(
                f"labels_N must be integers of shape ({features_ND.shape[0]},), got {labels_N.dtype} of "
                f"shape {tuple(labels_N.shape)}"
            )
        if len(labels_N) == 0:
            return
        if self._device is None:
            self._device = features_ND.device
        features_ND, labels_N = features_ND.detach().to(self.device), labels_N.to(self.device, torch.int64)
        if check is None:
            check = features_ND.device.type == "cpu"
        if check and not (finite_N := features_ND.isfinite().all(1)).all():
            raise ValueError(
                f"features of class {int(labels_N[~finite_N][0])} hold NaN or infinity in "
                f"{int((~finite_N).sum())} of {len(labels_N)} rows"
            )
        class_P, local_N, count_P = torch.unique(labels_N, return_inverse=True, return_counts=True)
        classes, counts = class_P.tolist(), count_P.tolist()
        if classes[0] < 0:
            raise ValueError(f"labels_N must be >= 0, got {classes[0]}")
        if classes[-1] >= MAX_CLASSES:
            raise ValueError(f"labels_N must be below {MAX_CLASSES}, got {classes[-1]}; number the classes from 0")
        self._grow(classes[-1] + 1)
        self._forget_factors(set(classes))
        thin = [self._is_low_rank(c) and self._num_rows(c) + n + 1 <= self._max_rank for c, n in zip(classes, counts)]
        rows = features_ND[torch.argsort(local_N, stable=True)].split(counts)
        self._add_thin([(c, x) for c, x, is_thin in zip(classes, rows, thin) if is_thin])
        self._add_dense([(c, x) for c, x, is_thin in zip(classes, rows, thin) if not is_thin])

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
        self._require_rows(wanted)
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
        for group in self._factors:
            slots = [i for i, c in enumerate(group.classes) if c in place]
            if slots:
                picked = [group.classes[i] for i in slots]
                factor = group.factor if len(slots) == len(group.classes) else group.factor[slots]
                drawn = self._draw(picked, factor, group.low_rank, num_per_class, seed, mean_scale_C, backend)
                features[torch.tensor([place[c] for c in picked], device=self.device)] = drawn
        labels = torch.tensor(wanted, dtype=torch.int64, device=self.device).repeat_interleave(num_per_class)
        return features.flatten(0, 1), labels

    def _draw(
        self,
        classes: list[int],
        factor: Tensor,
        low_rank: bool,
        num_per_class: int,
        seed: int | Tensor,
        mean_scale_C: Tensor | None,
        backend: str,
    ) -> Tensor:
        class_id = torch.tensor(classes, dtype=torch.int64, device=self.device)
        mean = torch.stack([self._mean[c] for c in classes])
        if mean_scale_C is not None:
            mean = mean * mean_scale_C.to(self.device, torch.float64)[class_id, None]
        if low_rank:
            return sample_low_rank(
                mean.float(), factor, math.sqrt(self.ridge), num_per_class, seed, backend, class_id_C=class_id
            )
        return sample_gaussians(mean.float(), factor, num_per_class, seed, backend, class_id_C=class_id)

    @_full_precision
    def factorize(self) -> None:
        """Factors every class that has rows and no factor yet; ``sample`` calls it.

        Raises: ValueError naming a class whose covariance no added ridge could factor (it is not finite).
        """
        done = {c for group in self._factors for c in group.classes}
        todo = [c for c in range(self.num_classes) if self._count[c] > 0 and c not in done]
        thin = [c for c in todo if self._is_low_rank(c)]
        if thin:
            self._rotate(thin)
            longest = max(self._num_rows(c) for c in thin)
            factor = torch.zeros(len(thin), longest, self.feature_dim, device=self.device)
            for slot, c in enumerate(thin):
                rows = self._scatter[c]
                factor[slot, : len(rows)] = rows / math.sqrt(max(self._count[c] - 1, 1))
            self._factors.append(_Factors(tuple(thin), factor, True))
        step = self._dense_step()
        dense = [c for c in todo if not self._is_low_rank(c)]
        packed = [self._cholesky(dense[i : i + step]) for i in range(0, len(dense), step)]
        if dense:
            self._factors.append(_Factors(tuple(dense), torch.cat(packed), False))

    def _cholesky(self, classes: list[int]) -> Tensor:
        covariance = torch.stack([self.covariance(c).to(self.factor_dtype) for c in classes])
        factor, added = cholesky_factor(covariance, self.ridge)
        for c, ridge in zip(classes, added.tolist()):
            if math.isnan(ridge):
                raise ValueError(
                    f"the covariance of class {c} cannot be factored: it is not finite or far from positive definite"
                )
            if ridge > 0:
                self._added_ridge[c] = ridge
        return pack_lower(factor).float()

    def flags(self) -> dict[int, tuple[str, ...]]:
        """What a report should say about a class: no rows, one row, no more rows than dimensions, ridge added."""
        found: dict[int, tuple[str, ...]] = {}
        for c, count in enumerate(self._count):
            notes = []
            if count == 0:
                notes.append("no rows: cannot be sampled")
            elif count == 1:
                notes.append("one row: zero covariance, the ridge alone spreads its samples")
            elif count <= self.feature_dim:
                notes.append(f"{count} rows for {self.feature_dim} dimensions: singular but for the ridge")
            if c in self._added_ridge:
                notes.append(f"ridge {self._added_ridge[c]:.3g} added to factor it")
            if notes:
                found[c] = tuple(notes)
        return found

    @_full_precision
    def extended(self, other: ClassGaussians) -> ClassGaussians:
        """A new value with the rows of both: new classes are appended, common ones merged. Factors are kept.

        Raises: ValueError when feature_dim differs.
        """
        if other.feature_dim != self.feature_dim:
            raise ValueError(f"feature_dim is {self.feature_dim} here and {other.feature_dim} in the other")
        result = self.select(0, self.num_classes)
        result._device = self._device or other._device
        result._grow(other.num_classes)
        common = {c for c in range(other.num_classes) if other._count[c] > 0 and result._count[c] > 0}
        result._forget_factors(common)
        for c, count in enumerate(other._count):
            if count == 0:
                continue
            mean, scatter = other._mean[c].to(result.device), other._scatter[c].to(result.device, self.accumulate_dtype)
            result._merge(c, count, mean, scatter, other._rotated[c])
        if other.device == result.device and other.ridge == self.ridge and other.factor_dtype == self.factor_dtype:
            fresh = (group.without(common) for group in other._factors)
            result._factors += [group for group in fresh if group is not None]
            result._added_ridge |= {c: r for c, r in other._added_ridge.items() if c not in common}
        return result

    def select(self, first: int, end: int) -> ClassGaussians:
        """A value that holds the classes first .. end - 1 only, under their own ids; those below are empty."""
        if not 0 <= first <= end <= self.num_classes:
            raise ValueError(f"classes {first} to {end} are not among 0 to {self.num_classes}")
        result = self._like()
        result._grow(end)
        for c in range(first, end):
            for name in ("_count", "_mean", "_scatter", "_rotated"):
                getattr(result, name)[c] = getattr(self, name)[c]
        left_out = {c for c in range(self.num_classes) if not first <= c < end}
        kept = (group.without(left_out) for group in self._factors)
        result._factors = [group for group in kept if group is not None]
        result._added_ridge = {c: r for c, r in self._added_ridge.items() if first <= c < end}
        return result

    def to(self, device: torch.device | str) -> ClassGaussians:
        """The same value with its moments and factors on ``device``."""
        result = self.select(0, self.num_classes)
        result._device = torch.device(device)
        result._mean = [None if m is None else m.to(device) for m in self._mean]
        result._scatter = [None if s is None else s.to(device) for s in self._scatter]
        result._factors = [_Factors(g.classes, g.factor.to(device), g.low_rank) for g in self._factors]
        return result

    @_full_precision
    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that was measured, by sorted name, on the CPU: what ``save`` writes and a checksum covers."""
        present = [c for c in range(self.num_classes) if self._count[c] > 0]
        thin = [c for c in present if self._is_low_rank(c)]
        dense = [c for c in present if not self._is_low_rank(c)]
        self._rotate(thin)
        empty = torch.zeros(0, self.feature_dim, dtype=self.accumulate_dtype)
        packed = [self._scatter[c].cpu() for c in dense]
        return {
            "class_id": torch.tensor(present, dtype=torch.int64),
            "count": torch.tensor([self._count[c] for c in present], dtype=torch.int64),
            "low_rank_class_id": torch.tensor(thin, dtype=torch.int64),
            "low_rank_num_rows": torch.tensor([self._num_rows(c) for c in thin], dtype=torch.int64),
            "low_rank_rows": torch.cat([empty, *(self._scatter[c].cpu() for c in thin)]),
            "mean": torch.stack([self._mean[c].cpu() for c in present]) if present else empty.double(),
            "packed_class_id": torch.tensor(dense, dtype=torch.int64),
            "packed_scatter": torch.stack(packed)
            if packed
            else pack_lower(torch.zeros(0, self.feature_dim, self.feature_dim, dtype=self.accumulate_dtype)),
        }

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file whose JSON header holds the settings and a SHA-256; atomic, mode by umask."""
        path = Path(path)
        tensors, header = self.state_tensors(), self._header()
        header_text = json.dumps(header, sort_keys=True)
        metadata = {"gaussians": header_text, "sha256": _checksum(tensors, header_text)}
        temporary = path.with_name(f".{path.name}.new")
        write_durably(temporary, safetensors.torch.save(tensors, metadata))
        rename_durably(temporary, path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> ClassGaussians:
        """Reads what ``save`` wrote. Raises: ValueError naming the path for a damaged or foreign file."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        header_text = metadata.get("gaussians", "")
        if metadata.get("sha256") != _checksum(tensors, header_text):
            raise ValueError(f"{path} is damaged or holds no class Gaussians: its checksum does not match")
        header = json.loads(header_text)
        if header["format"] != FORMAT:
            raise ValueError(f"{path} has format {header['format']!r}, this version reads {FORMAT!r}")
        return cls.from_state(tensors, header, device)

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], header: dict[str, Any], device: torch.device | str = "cpu"
    ) -> ClassGaussians:
        """The value of ``state_tensors`` and the settings of ``save``'s header."""
        result = cls(
            header["feature_dim"],
            header["ridge"],
            storage=header["storage"],
            accumulate_dtype=getattr(torch, header["accumulate_dtype"]),
            factor_dtype=getattr(torch, header["factor_dtype"]),
        )
        result._device = torch.device(device)
        result._grow(header["num_classes"])
        classes = tensors["class_id"].tolist()
        for c, count, mean in zip(classes, tensors["count"].tolist(), tensors["mean"]):
            result._count[c], result._mean[c] = count, mean.clone().to(device)
        rows = tensors["low_rank_rows"].split(tensors["low_rank_num_rows"].tolist())
        for c, part in zip(tensors["low_rank_class_id"].tolist(), rows):
            result._scatter[c], result._rotated[c] = part.clone().to(device), True
        for c, packed in zip(tensors["packed_class_id"].tolist(), tensors["packed_scatter"]):
            result._scatter[c] = packed.clone().to(device)
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
        result._device = means.device
        result._grow(num_classes)
        for c, count in enumerate(counts):
            if count == 0:
                continue
            covariance = covariances[c].to(means.device, result.accumulate_dtype)
            if not (means[c].isfinite().all() and covariance.isfinite().all()):
                raise ValueError(f"the mean or covariance of class {c} holds NaN or infinity")
            result._count[c], result._mean[c] = count, means[c].detach().double()
            result._scatter[c] = pack_lower(covariance.detach() * (count - 1))
        return result

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "feature_dim": self.feature_dim,
            "ridge": self.ridge,
            "storage": self.storage,
            "num_classes": self.num_classes,
            "accumulate_dtype": str(self.accumulate_dtype).split(".")[1],
            "factor_dtype": str(self.factor_dtype).split(".")[1],
        }

    def _like(self) -> ClassGaussians:
        result = ClassGaussians(
            self.feature_dim,
            self.ridge,
            accumulate_dtype=self.accumulate_dtype,
            factor_dtype=self.factor_dtype,
            storage=self.storage,
        )
        result._device = self._device
        return result

    def _grow(self, num_classes: int) -> None:
        missing = max(0, num_classes - self.num_classes)
        self._count += [0] * missing
        self._mean += [None] * missing
        self._scatter += [None] * missing
        self._rotated += [False] * missing

    def _require_rows(self, classes: Sequence[int]) -> None:
        for c in classes:
            if not 0 <= c < self.num_classes:
                raise ValueError(f"class {c} is not among the {self.num_classes} classes")
            if self._count[c] == 0:
                raise ValueError(f"class {c} has no rows: update it before using its Gaussian")

    def _forget_factors(self, classes: set[int]) -> None:
        kept = (group.without(classes) for group in self._factors)
        self._factors = [group for group in kept if group is not None]
        for c in classes:
            self._added_ridge.pop(c, None)

    def _is_low_rank(self, class_id: int) -> bool:
        """Whether the class has rows [K, D], or none yet; a packed triangle has ceil(D/2) columns."""
        scatter = self._scatter[class_id]
        return scatter is None or _is_rows(scatter, self.feature_dim)

    def _num_rows(self, class_id: int) -> int:
        scatter = self._scatter[class_id]
        return 0 if scatter is None else len(scatter)

    def _dense_step(self) -> int:
        return max(1, MAX_DENSE_BYTES // (8 * self.feature_dim**2))

    def _add_thin(self, parts: list[tuple[int, Tensor]]) -> None:
        for c, rows in parts:
            rows = rows.double()
            mean = rows.mean(0)
            self._merge(c, len(rows), mean, (rows - mean).to(self.accumulate_dtype), False)

    def _add_dense(self, parts: list[tuple[int, Tensor]]) -> None:
        step = self._dense_step()
        for start in range(0, len(parts), step):
            chunk = parts[start : start + step]
            rows = torch.cat([rows for _, rows in chunk])
            sizes = torch.tensor([len(rows) for _, rows in chunk], device=rows.device)
            slots = torch.arange(len(chunk), device=rows.device).repeat_interleave(sizes)
            _, mean, scatter = class_moments(rows, slots, len(chunk), accumulate_dtype=self.accumulate_dtype)
            for (c, part), mean_D, packed in zip(chunk, mean.double(), pack_lower(scatter)):
                self._merge(c, len(part), mean_D.clone(), packed.clone(), False)

    def _merge(self, class_id: int, count: int, mean: Tensor, scatter: Tensor, rotated: bool) -> None:
        """Chan's merge of ``count`` rows of one class into its state; ``scatter`` is low rank or packed."""
        old_count, old_mean, old = self._count[class_id], self._mean[class_id], self._scatter[class_id]
        self._count[class_id] = total = old_count + count
        if old_count == 0:
            self._mean[class_id], self._scatter[class_id], self._rotated[class_id] = mean, scatter, rotated
            return
        delta = mean - old_mean
        self._mean[class_id] = old_mean + delta * (count / total)
        delta = (delta * math.sqrt(old_count * count / total)).to(self.accumulate_dtype)[None]
        dim = self.feature_dim
        if _is_rows(old, dim) and _is_rows(scatter, dim) and len(old) + len(scatter) + 1 <= self._max_rank:
            self._scatter[class_id], self._rotated[class_id] = torch.cat([old, scatter, delta]), False
            return
        packed = [pack_lower(s.mT @ s) if _is_rows(s, dim) else s for s in (old, scatter)]
        self._scatter[class_id] = packed[0] + packed[1] + pack_lower(delta.mT @ delta)
        self._rotated[class_id] = False

    def _rotate(self, classes: Sequence[int]) -> None:
        """Turns rows X into U^T X, U the eigenvectors of X X^T: the same scatter, no image's feature, rank rows."""
        todo = [c for c in classes if not self._rotated[c]]
        step = max(1, MAX_DENSE_BYTES // (4 * self.feature_dim**2))
        for chunk in (todo[i : i + step] for i in range(0, len(todo), step)):
            longest = max(self._num_rows(c) for c in chunk)
            rows = torch.zeros(len(chunk), longest, self.feature_dim, dtype=torch.float64, device=self.device)
            for slot, c in enumerate(chunk):
                rows[slot, : self._num_rows(c)] = self._scatter[c]
            _, vectors = torch.linalg.eigh(rows @ rows.mT)
            rotated = vectors.flip(-1).mT @ rows
            # Eigenvectors come with an arbitrary sign; samples should not.
            largest = rotated.gather(-1, rotated.abs().argmax(-1, keepdim=True))
            rotated = torch.where(largest < 0, -rotated, rotated).to(self.accumulate_dtype)
            for slot, c in enumerate(chunk):
                rank = max(min(self._num_rows(c), self._count[c] - 1), 0)
                self._scatter[c], self._rotated[c] = rotated[slot, :rank].clone(), True


def _is_rows(scatter: Tensor, dim: int) -> bool:
    """Whether a scatter is held as rows [K, D] with scatter = rows^T rows, not as a packed triangle."""
    return dim > 1 and scatter.shape[-1] == dim


def _full_scatter(scatter: Tensor, dim: int) -> Tensor:
    return scatter.mT @ scatter if _is_rows(scatter, dim) else unpack_symmetric(scatter)


def _checksum(tensors: dict[str, Tensor], header_text: str) -> str:
    digest = hashlib.sha256(header_text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
