"""Per-class count, mean and scatter of features: what a class Gaussian is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from slca_fast.kernels import triton_runtime
from slca_fast.kernels.class_moments.error_bound import class_moments_error_bound
from slca_fast.kernels.class_moments.reference import class_moments_reference
from slca_fast.ops.registry import OpSpec, Sample, choose_backend, register


class Moments(NamedTuple):
    """Sufficient statistics of C classes."""

    count_C: Tensor
    """[C] int64 number of rows."""
    mean_CD: Tensor
    """[C, D] mean; zeros for an empty class."""
    scatter_CDD: Tensor
    """[C, D, D] sum of outer products of centred rows; divide by count - 1 for the unbiased covariance."""


def class_moments(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    backend: str = "auto",
    *,
    accumulate_dtype: torch.dtype = torch.float64,
    input_precision: str = "ieee",
    check: bool | None = None,
) -> Moments:
    """Count, mean and centred scatter of every class (SLCA, arXiv 2303.05118, section 3.3). Not
    differentiable.

    Args:
        features_ND: [N, D] floating point, any device.
        labels_N: [N] integers in [0, num_classes), any order.
        num_classes: C >= 0.
        accumulate_dtype: float64 or float32, of the sums and of the returned mean and scatter.
        input_precision: "ieee" or "tf32x3" (three tensor-core passes, float32's accuracy), of Triton's products.
        check: raise for labels out of range, which costs a synchronisation on CUDA; None: on the CPU only.
            Unchecked rows with labels out of range are left out.

    Returns: Moments(count_C [C] int64, mean_CD [C, D], scatter_CDD [C, D, D]); classes with no rows are all
    zeros, classes with one row have zero scatter.

    Raises: ValueError for wrong shapes, dtypes, devices, labels (when checked) or a backend that cannot run.
    """
    _validate(features_ND, labels_N, num_classes, accumulate_dtype)
    check = features_ND.device.type == "cpu" if check is None else check
    if check and not torch.compiler.is_compiling() and labels_N.numel():
        low, high = (int(v) for v in torch.aminmax(labels_N))
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels_N must lie in [0, {num_classes}), got {low if low < 0 else high}")
    if input_precision not in ("ieee", "tf32x3"):
        raise ValueError(f"input_precision must be 'ieee' or 'tf32x3', got {input_precision!r}")
    wide = torch.float64 in (accumulate_dtype, features_ND.dtype)
    chosen = choose_backend(
        "class_moments",
        backend,
        features_ND.device,
        triton=triton_runtime.why_not(features_ND.device.type)
        or ("it accumulates in float32; float64 takes the reference" if wide else None),
    )
    # int64: a narrow dtype may not hold the bounds 0 .. C that the backends search for
    return Moments(
        *_class_moments(features_ND.detach(), labels_N.long(), num_classes, chosen, accumulate_dtype, input_precision)
    )


def _validate(features_ND: Tensor, labels_N: Tensor, num_classes: int, accumulate_dtype: torch.dtype) -> None:
    if features_ND.ndim != 2 or not features_ND.is_floating_point():
        raise ValueError(
            f"features_ND must be a floating-point matrix [N, D], got {features_ND.dtype} of shape "
            f"{tuple(features_ND.shape)}"
        )
    if labels_N.shape != features_ND.shape[:1]:
        raise ValueError(
            f"labels_N must have shape ({features_ND.shape[0]},) like features_ND's rows, got {tuple(labels_N.shape)}"
        )
    if labels_N.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"labels_N must be integers, got {labels_N.dtype}")
    if labels_N.device != features_ND.device:
        raise ValueError(f"labels_N is on {labels_N.device}, features_ND on {features_ND.device}; move one of them")
    if num_classes < 0:
        raise ValueError(f"num_classes must be >= 0, got {num_classes}")
    if accumulate_dtype not in (torch.float64, torch.float32):
        raise ValueError(f"accumulate_dtype must be torch.float64 or torch.float32, got {accumulate_dtype}")


@torch.library.custom_op("slca_fast::class_moments", mutates_args=())
def _class_moments(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    backend: str,
    accumulate_dtype: torch.dtype,
    input_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "triton":
        from slca_fast.kernels.class_moments.triton_kernel import class_moments_triton

        return class_moments_triton(features_ND, labels_N, num_classes, input_precision)
    assert backend == "reference", backend
    with torch.autocast(features_ND.device.type, enabled=False):
        return class_moments_reference(features_ND, labels_N, num_classes, accumulate_dtype)


@_class_moments.register_fake
def _(features_ND, labels_N, num_classes, backend, accumulate_dtype, input_precision):
    dim = features_ND.shape[1]
    return (
        features_ND.new_empty(num_classes, dtype=torch.int64),
        features_ND.new_empty(num_classes, dim, dtype=accumulate_dtype),
        features_ND.new_empty(num_classes, dim, dim, dtype=accumulate_dtype),
    )


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of rows (Chan, Golub, LeVeque 1979).

    With n = n_a + n_b and delta = mean_b - mean_a: mean = mean_a + delta n_b / n,
    scatter = scatter_a + scatter_b + delta delta^T n_a n_b / n. Class c of ``a`` is class c of ``b``.

    Raises: ValueError when the shapes differ.
    """
    if a.mean_CD.shape != b.mean_CD.shape:
        raise ValueError(f"moments of shapes {tuple(a.mean_CD.shape)} and {tuple(b.mean_CD.shape)} do not merge")
    count_C = a.count_C + b.count_C
    share_C1 = (b.count_C / count_C.clamp(min=1).double()).to(a.mean_CD.dtype)[:, None]
    delta_CD = b.mean_CD - a.mean_CD
    weight_C1 = a.count_C.to(a.mean_CD.dtype)[:, None] * share_C1
    scatter_CDD = a.scatter_CDD + b.scatter_CDD
    scatter_CDD.baddbmm_((weight_C1 * delta_CD)[:, :, None], delta_CD[:, None, :])
    return Moments(count_C, a.mean_CD + delta_CD * share_C1, scatter_CDD)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(7)
    for label, num_rows, dim, num_classes in (
        ("ragged", 67, 19, 5),
        ("empty-classes", 40, 33, 11),
        ("one-row", 1, 8, 3),
        ("no-rows", 0, 5, 4),
        ("one-class", 30, 16, 1),
        ("one-column", 23, 1, 3),
    ):
        features_ND = torch.randn(num_rows, dim, generator=generator) + 3
        labels_N = (torch.randint(0, max(num_classes, 1), (num_rows,), generator=generator) ** 2) % num_classes
        args = (features_ND.to(device, dtype), labels_N.to(device), num_classes)
        for accumulate_dtype in (torch.float32, torch.float64):
            if torch.promote_types(dtype, accumulate_dtype) == accumulate_dtype:
                short = str(accumulate_dtype).removeprefix("torch.")
                yield Sample(
                    f"{label}-{num_rows}x{dim}x{num_classes}-{short}", args, {"accumulate_dtype": accumulate_dtype}
                )


def _benchmark_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_classes, per_class, dim in ((20, 120, 768), *(((1000, 500, 768),) if device.type == "cuda" else ())):
        features_ND = torch.randn(num_classes * per_class, dim, device=device, dtype=dtype)
        labels_N = torch.arange(num_classes, device=device).repeat(per_class)
        for accumulate_dtype in (torch.float32, torch.float64):
            yield Sample(
                f"{num_classes}x{per_class}x{dim} {accumulate_dtype}",
                (features_ND, labels_N, num_classes),
                {"accumulate_dtype": accumulate_dtype},
            )


def _bytes_moved(sample: Sample) -> int:
    """The features read once; counts, means and scatters written once, each in its dtype."""
    features_ND, labels_N, num_classes = sample.args
    dim, dtype = features_ND.shape[1], sample.kwargs.get("accumulate_dtype", torch.float64)
    return features_ND.nbytes + labels_N.nbytes + num_classes * (8 + dim * (dim + 1) * dtype.itemsize)


def _torch_cov(features_ND: Tensor, labels_N: Tensor, num_classes: int, **_: object) -> list[Tensor]:
    """The library's way: torch.cov in float64, class by class."""
    return [torch.cov(features_ND[labels_N == c].double().T) for c in range(num_classes)]


register(
    OpSpec(
        name="class_moments",
        function=class_moments,
        reference=class_moments_reference,
        backends={"cpu": ("reference", "triton"), "cuda": ("triton", "reference")},
        samples=_samples,
        benchmark_samples=_benchmark_samples,
        error_bound=class_moments_error_bound,
        bytes_moved=_bytes_moved,
        flops=lambda s: s.args[0].shape[0] * s.args[0].shape[1] * (s.args[0].shape[1] + 1),
        baselines={"torch.cov": _torch_cov},
    )
)
