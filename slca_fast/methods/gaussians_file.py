"""The file of class Gaussians: safetensors with the moments, a JSON header of the settings and a checksum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from slca_fast.kernels.gaussian_sampling.packing import pack_lower, packed_shape
from slca_fast.methods.gaussians_moments import ClassMoments
from slca_fast.methods.tensor_file import read_tensors, write_tensors

FORMAT = "slca_fast.ClassGaussians/1"
KIND = "gaussians"


class Header(TypedDict):
    """What ``header_of`` makes."""

    feature_dim: Annotated[int, Meta(ge=1, le=2**20)]
    ridge: Annotated[float, Meta(ge=0, le=1e30)]
    storage: Literal["auto", "dense"]
    accumulate_dtype: Literal["float32", "float64"]
    factor_dtype: Literal["float32", "float64"]
    num_classes: Annotated[int, Meta(ge=0, le=10_000_000)]


def header_of(settings: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The JSON header: the arguments of ClassGaussians, dtypes by name, the number of classes and the format."""
    plain = {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for k, v in settings.items()}
    return {**plain, "format": FORMAT, "num_classes": num_classes}


def settings_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ClassGaussians in a header."""
    plain = {name: header[name] for name in ("feature_dim", "ridge", "storage")}
    return plain | {name: getattr(torch, header[name]) for name in ("accumulate_dtype", "factor_dtype")}


def tensors_of(moments: Mapping[int, ClassMoments], dim: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Moments by ascending class id, low-rank ones rotated, as tensors by sorted name on the CPU.

    With P classes, of which L are low rank, K rows in all, and Q packed, [R, S] a packed triangle: ``class_id``,
    ``count`` [P], ``low_rank_class_id``, ``low_rank_num_rows`` [L] and ``packed_class_id`` [Q] int64, ``mean`` [P, D]
    float64, ``low_rank_rows`` [K, D] and ``packed_scatter`` [Q, R, S] of ``dtype``.
    """
    thin = {c: m for c, m in moments.items() if m.is_low_rank}
    dense = {c: m for c, m in moments.items() if not m.is_low_rank}
    assert all(m.rotated for m in thin.values()), "rows of unrotated moments are features of images"
    no_rows = torch.zeros(0, dim, dtype=dtype)
    no_triangles = pack_lower(torch.zeros(0, dim, dim, dtype=dtype))
    return {
        "class_id": torch.tensor(list(moments), dtype=torch.int64),
        "count": torch.tensor([m.count for m in moments.values()], dtype=torch.int64),
        "low_rank_class_id": torch.tensor(list(thin), dtype=torch.int64),
        "low_rank_num_rows": torch.tensor([m.rank for m in thin.values()], dtype=torch.int64),
        "low_rank_rows": torch.cat([no_rows, *(m.scatter.cpu() for m in thin.values())]),
        "mean": torch.stack([m.mean.cpu() for m in moments.values()]) if moments else no_rows.double(),
        "packed_class_id": torch.tensor(list(dense), dtype=torch.int64),
        "packed_scatter": torch.stack([m.scatter.cpu() for m in dense.values()]) if dense else no_triangles,
    }


def moments_of(
    tensors: Mapping[str, Tensor], num_classes: int, device: torch.device | str
) -> list[ClassMoments | None]:
    """The moments whose ``tensors_of`` these are, on ``device``; None for a class without rows."""
    parts = tensors["low_rank_rows"].split(tensors["low_rank_num_rows"].tolist())
    rows = dict(zip(tensors["low_rank_class_id"].tolist(), parts))
    packed = dict(zip(tensors["packed_class_id"].tolist(), tensors["packed_scatter"]))
    found: list[ClassMoments | None] = [None] * num_classes
    for c, count, mean in zip(tensors["class_id"].tolist(), tensors["count"].tolist(), tensors["mean"]):
        scatter = rows[c] if c in rows else packed[c]
        found[c] = ClassMoments(count, mean.clone().to(device), scatter.clone().to(device), rotated=c in rows)
    return found


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes one safetensors file, atomically; its metadata hold the header and a SHA-256 of header and tensors."""
    write_tensors(path, KIND, header, tensors)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header that ``write`` wrote.

    Raises: ValueError naming the path for a damaged or foreign file.
    """
    header, tensors = read_tensors(Path(path), KIND)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{path} has format {str(found)[:40]!r}, this version reads {FORMAT!r}")
    try:
        fit = _fits(tensors, msgspec.convert(header, Header))
    except (msgspec.ValidationError, OverflowError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not fit:
        raise ValueError(f"{path} holds no moments of its classes and width")
    return tensors, header


def _fits(tensors: Mapping[str, Tensor], header: Header) -> bool:
    """Whether ``tensors`` are what ``tensors_of`` can have made; raises KeyError for a missing one."""
    dim, dtype = header["feature_dim"], getattr(torch, header["accumulate_dtype"])
    ids = ("class_id", "count", "low_rank_class_id", "low_rank_num_rows", "packed_class_id")
    if any(tensors[name].dtype != torch.int64 or tensors[name].dim() != 1 for name in ids):
        return False
    classes, thin, dense = (tensors[name].tolist() for name in ("class_id", "low_rank_class_id", "packed_class_id"))
    num_rows = tensors["low_rank_num_rows"].tolist()
    shapes = {
        "count": ((len(classes),), torch.int64),
        "low_rank_num_rows": ((len(thin),), torch.int64),
        "mean": ((len(classes), dim), torch.float64),
        "low_rank_rows": ((sum(num_rows), dim), dtype),
        "packed_scatter": ((len(dense), *packed_shape(dim)), dtype),
    }
    return (
        all((tuple(tensors[name].shape), tensors[name].dtype) == expected for name, expected in shapes.items())
        and sorted(thin + dense) == sorted(set(classes))
        and all(0 <= c < header["num_classes"] for c in classes)
        and min(tensors["count"].tolist(), default=1) >= 1
        and min(num_rows, default=0) >= 0
        and all(tensor.isfinite().all() for tensor in tensors.values())
    )
