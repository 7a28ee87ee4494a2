"""Cholesky factors of class covariances, and features drawn from the class Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from slca_fast.kernels import native, triton_runtime
from slca_fast.kernels.gaussian_sampling.error_bound import (
    cholesky_factor_error_bound,
    sample_gaussians_error_bound,
    sample_low_rank_error_bound,
)
from slca_fast.kernels.gaussian_sampling.native_kernel import SYMBOL, philox_normal_native
from slca_fast.kernels.gaussian_sampling.packing import is_packed, pack_lower, unpack_lower
from slca_fast.kernels.gaussian_sampling.philox import philox_normal_reference
from slca_fast.kernels.gaussian_sampling.reference import (
    cholesky_factor_reference,
    sample_gaussians_reference,
    sample_low_rank_reference,
)
from slca_fast.ops.registry import OpSpec, Sample, choose_backend, register

__all__ = ["cholesky_factor", "pack_lower", "sample_gaussians", "sample_low_rank", "unpack_lower"]


def cholesky_factor(covariance_CDD: Tensor, ridge: float = 1e-4, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Factors L_c L_c^T = Sigma_c + (ridge + added_c) I of all classes in one batch. Not differentiable.

    A matrix that does not factorise climbs a ladder of extra ridge, 1e-8 to 1 times its mean diagonal, x10 a
    rung, without a synchronisation per class; the others are left exactly as they are.

    Args: covariance_CDD [C, D, D] float32 or float64, symmetric (the lower triangle is read); ridge >= 0.
    Returns: factor_CDD [C, D, D] lower triangular of the same dtype, added_ridge_C [C]: 0 where nothing was added;
    NaN, with a factor of NaN, where the matrix is not finite or so indefinite that no rung helped.
    Raises: ValueError for wrong shapes, dtypes, a negative ridge or a backend that cannot run.
    """
    if covariance_CDD.ndim != 3 or covariance_CDD.shape[1] != covariance_CDD.shape[2]:
        raise ValueError(f"covariance_CDD must have shape [C, D, D], got {tuple(covariance_CDD.shape)}")
    if covariance_CDD.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"covariance_CDD must be float32 or float64, got {covariance_CDD.dtype}")
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0, got {ridge}")
    chosen = choose_backend("cholesky_factor", backend, covariance_CDD.device)
    return _cholesky_factor(covariance_CDD.detach(), float(ridge), chosen)


@torch.library.custom_op("slca_fast::cholesky_factor", mutates_args=())
def _cholesky_factor(covariance_CDD: Tensor, ridge: float, backend: str) -> tuple[Tensor, Tensor]:
    assert backend == "reference", backend
    with torch.autocast(covariance_CDD.device.type, enabled=False):
        return cholesky_factor_reference(covariance_CDD, ridge)


@_cholesky_factor.register_fake
def _(covariance_CDD, ridge, backend):
    return covariance_CDD.new_empty(covariance_CDD.shape).mT, covariance_CDD.new_empty(covariance_CDD.shape[0])


def sample_gaussians(
    mean_CD: Tensor,
    factor: Tensor,
    num_per_class: int,
    seed: int | Tensor = 0,
    backend: str = "auto",
    *,
    class_id_C: Tensor | None = None,
    sample_offset: int = 0,
) -> Tensor:
    """Draws num_per_class features of every class: x = mean_c + L_c z. Not differentiable.

    The normals z are counter-based: a pure function of (seed, class id, sample index, dimension), so the
    features depend neither on how classes or samples are split over calls nor on the device (but for
    rounding).

    Args:
        mean_CD: [C, D] float32 or float64.
        factor: [C, D, D] lower triangular (what lies above the diagonal is not read), or packed by
        ``pack_lower``. seed: integer of 64 bits, or an int64 tensor [1] on the device (no transfer, can
        change under a CUDA graph). class_id_C: [C] int64 ids that key the random numbers; None: 0 .. C - 1.
        sample_offset: index of the first sample of every class.

    Returns: [C, num_per_class, D] of the factor's dtype. Raises: ValueError for shapes, dtypes, devices.
    """
    _validate(mean_CD, factor, num_per_class, sample_offset)
    is_packed(factor, mean_CD.shape[1])
    chosen = _choose("gaussian_sampling", backend, mean_CD)
    which = _which_samples(mean_CD, num_per_class, seed, class_id_C, sample_offset)
    return _sample_gaussians(mean_CD.detach(), factor.detach(), *which, chosen)


@torch.library.custom_op("slca_fast::sample_gaussians", mutates_args=())
def _sample_gaussians(
    mean_CD: Tensor,
    factor: Tensor,
    class_id_C: Tensor,
    num_per_class: int,
    seed: Tensor,
    sample_offset: int,
    backend: str,
) -> Tensor:
    with torch.autocast(mean_CD.device.type, enabled=False):
        return sample_gaussians_reference(
            mean_CD, factor, class_id_C, num_per_class, seed, sample_offset, _normals(backend)
        )


@_sample_gaussians.register_fake
def _(mean_CD, factor, class_id_C, num_per_class, seed, sample_offset, backend):
    return factor.new_empty(mean_CD.shape[0], num_per_class, mean_CD.shape[1])


def sample_low_rank(
    mean_CD: Tensor,
    rows_CKD: Tensor,
    noise_scale: float,
    num_per_class: int,
    seed: int | Tensor = 0,
    backend: str = "auto",
    *,
    class_id_C: Tensor | None = None,
    sample_offset: int = 0,
) -> Tensor:
    """Draws features of covariance R_c^T R_c + noise_scale^2 I without ever forming it. Not differentiable.

    Exact for any rows R_c [K, D] (zero rows pad); cheaper than a Cholesky factor for K <= D/2. ``seed``,
    ``class_id_C``, ``sample_offset``, the result and the errors are those of ``sample_gaussians``.
    """
    _validate(mean_CD, rows_CKD, num_per_class, sample_offset)
    if rows_CKD.shape[2] != mean_CD.shape[1]:
        raise ValueError(f"rows_CKD must have shape [C, K, {mean_CD.shape[1]}], got {tuple(rows_CKD.shape)}")
    if not noise_scale >= 0:
        raise ValueError(f"noise_scale must be >= 0, got {noise_scale}")
    chosen = _choose("low_rank_sampling", backend, mean_CD)
    which = _which_samples(mean_CD, num_per_class, seed, class_id_C, sample_offset)
    return _sample_low_rank(mean_CD.detach(), rows_CKD.detach(), float(noise_scale), *which, chosen)


@torch.library.custom_op("slca_fast::sample_low_rank", mutates_args=())
def _sample_low_rank(
    mean_CD: Tensor,
    rows_CKD: Tensor,
    noise_scale: float,
    class_id_C: Tensor,
    num_per_class: int,
    seed: Tensor,
    sample_offset: int,
    backend: str,
) -> Tensor:
    with torch.autocast(mean_CD.device.type, enabled=False):
        return sample_low_rank_reference(
            mean_CD, rows_CKD, noise_scale, class_id_C, num_per_class, seed, sample_offset, _normals(backend)
        )


@_sample_low_rank.register_fake
def _(mean_CD, rows_CKD, noise_scale, class_id_C, num_per_class, seed, sample_offset, backend):
    return rows_CKD.new_empty(mean_CD.shape[0], num_per_class, mean_CD.shape[1])


def _choose(name: str, backend: str, mean_CD: Tensor) -> str:
    single = None if mean_CD.dtype == torch.float32 else "its normals are float32; float64 takes the reference"
    return choose_backend(
        name,
        backend,
        mean_CD.device,
        native=native.why_not(SYMBOL) or single,
        triton=triton_runtime.why_not(mean_CD.device.type) or single,
    )


def _normals(backend: str) -> Callable[..., Tensor]:
    """Who makes the counter-based normals; the products are torch's in every backend."""
    if backend == "native":
        return philox_normal_native
    if backend == "triton":
        from slca_fast.kernels.gaussian_sampling.triton_kernel import philox_normal_triton

        return philox_normal_triton
    assert backend == "reference", backend
    return philox_normal_reference


def _validate(mean_CD: Tensor, factor: Tensor, num_per_class: int, sample_offset: int) -> None:
    if mean_CD.ndim != 2 or mean_CD.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"mean_CD must be [C, D] of float32 or float64, got {mean_CD.dtype} of shape {tuple(mean_CD.shape)}"
        )
    if factor.ndim != 3 or factor.shape[0] != mean_CD.shape[0]:
        raise ValueError(
            f"the factor must have one matrix for each of {mean_CD.shape[0]} classes, got shape {tuple(factor.shape)}"
        )
    if factor.dtype != mean_CD.dtype or factor.device != mean_CD.device:
        raise ValueError(
            f"mean_CD is {mean_CD.dtype} on {mean_CD.device}, the factor {factor.dtype} on "
            f"{factor.device}; make them alike"
        )
    if num_per_class < 0 or sample_offset < 0:
        raise ValueError(f"num_per_class and sample_offset must be >= 0, got {num_per_class} and {sample_offset}")


def _which_samples(
    mean_CD: Tensor, num_per_class: int, seed: int | Tensor, class_id_C: Tensor | None = None, sample_offset: int = 0
) -> tuple[Tensor, int, Tensor, int]:
    """What keys the random numbers: class ids, number of samples, seed and first sample, on the means' device."""
    return _class_ids(class_id_C, mean_CD), num_per_class, _seed_tensor(seed, mean_CD.device), sample_offset


def _class_ids(class_id_C: Tensor | None, mean_CD: Tensor) -> Tensor:
    if class_id_C is None:
        return torch.arange(mean_CD.shape[0], device=mean_CD.device)
    if class_id_C.shape != mean_CD.shape[:1] or class_id_C.dtype != torch.int64:
        raise ValueError(
            f"class_id_C must be int64 of shape ({mean_CD.shape[0]},), got {class_id_C.dtype} of shape "
            f"{tuple(class_id_C.shape)}"
        )
    return class_id_C.to(mean_CD.device)


def _seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise ValueError(f"seed must be one int64, got {seed.dtype} of shape {tuple(seed.shape)}")
        return seed.reshape(1).to(device)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    return torch.tensor([seed - 2**64 if seed >= 2**63 else seed], dtype=torch.int64, device=device)


def _covariances(num_classes: int, dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    rows = torch.randn(num_classes, dim + 3, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    return (rows.mT @ rows / (dim + 3)).to(device, dtype)


def _factor_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_classes, dim in ((3, 17), (1, 1), (0, 4), (5, 32)):
        yield Sample(f"{num_classes}x{dim}", (_covariances(num_classes, dim, device, dtype), 1e-4))


def _draw_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_classes, dim, num_per_class in ((3, 17, 5), (1, 1, 1), (0, 4, 3), (5, 32, 7), (2, 6, 0)):
        factor = torch.linalg.cholesky(_covariances(num_classes, dim, device, torch.float64)).to(dtype)
        mean_CD = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(3)).to(device, dtype)
        for label, form in (("full", factor), ("packed", pack_lower(factor))):
            yield Sample(f"{label}-{num_classes}x{num_per_class}x{dim}", (mean_CD, form, num_per_class, 11))


def _low_rank_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_classes, num_rows, dim, num_per_class in (
        (3, 4, 17, 5), (1, 1, 1, 1), (0, 2, 4, 3), (5, 9, 32, 7), (2, 0, 6, 3)
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(dim)
        mean_CD = torch.randn(num_classes, dim, generator=generator).to(device, dtype)
        rows_CKD = torch.randn(num_classes, num_rows, dim, generator=generator).to(device, dtype)
        label = f"{num_classes}x{num_per_class}x{dim} rank {num_rows}"
        yield Sample(label, (mean_CD, rows_CKD, 0.01, num_per_class, 11))


def _low_rank_benchmark(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_classes in (20, *((200,) if device.type == "cuda" else ())):
        mean_CD = torch.randn(num_classes, 768, device=device, dtype=dtype)
        rows_CKD = torch.randn(num_classes, 120, 768, device=device, dtype=dtype)
        yield Sample(f"{num_classes}x256x768 rank 120", (mean_CD, rows_CKD, 0.01, 256, 11))


def _as_many(matrix_1DD: Tensor, num_classes: int) -> Tensor:
    """So many multiples of a matrix: one alone would stay in the caches."""
    return matrix_1DD * torch.linspace(0.5, 2, num_classes).to(matrix_1DD)[:, None, None]


def _factor_benchmark(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_classes in (20, *((345,) if device.type == "cuda" else ())):
        yield Sample(f"{num_classes}x768x768", (_as_many(_covariances(1, 768, device, dtype), num_classes), 1e-4))


def _draw_benchmark(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_classes in (20, *((200,) if device.type == "cuda" else ())):
        factor = torch.linalg.cholesky(_covariances(1, 768, device, torch.float64)).to(dtype)
        mean_CD = torch.randn(num_classes, 768, device=device, dtype=dtype)
        yield Sample(f"{num_classes}x256x768", (mean_CD, pack_lower(_as_many(factor, num_classes)), 256, 11))


def _torch_cholesky(covariance_CDD: Tensor, ridge: float, **_: object) -> Tensor:
    """The library's batched factorisation, ridge added, without a ladder."""
    return torch.linalg.cholesky(covariance_CDD + ridge * torch.eye(covariance_CDD.shape[-1]).to(covariance_CDD))


register(
    OpSpec(
        name="cholesky_factor",
        function=cholesky_factor,
        reference=cholesky_factor_reference,
        backends={"cpu": ("reference",), "cuda": ("reference",)},
        samples=_factor_samples,
        benchmark_samples=_factor_benchmark,
        error_bound=cholesky_factor_error_bound,
        dtypes=(torch.float32, torch.float64),
        bytes_moved=lambda s: 2 * s.args[0].nbytes,
        flops=lambda s: s.args[0].shape[0] * s.args[0].shape[1] ** 3 // 3,
        baselines={"torch.linalg.cholesky": _torch_cholesky},
    )
)

register(
    OpSpec(
        name="gaussian_sampling",
        function=sample_gaussians,
        reference=lambda mean_CD, factor, num_per_class, seed: sample_gaussians_reference(
            mean_CD, factor, *_which_samples(mean_CD, num_per_class, seed)
        ),
        backends={"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
        samples=_draw_samples,
        benchmark_samples=_draw_benchmark,
        error_bound=sample_gaussians_error_bound,
        dtypes=(torch.float32, torch.float64),
        bytes_moved=lambda s: s.args[1].nbytes + s.args[0].nbytes * (s.args[2] + 1),
        flops=lambda s: s.args[0].shape[0] * s.args[2] * s.args[0].shape[1] * (s.args[0].shape[1] + 1),
    )
)

register(
    OpSpec(
        name="low_rank_sampling",
        function=sample_low_rank,
        reference=lambda mean_CD, rows_CKD, noise_scale, num_per_class, seed: sample_low_rank_reference(
            mean_CD, rows_CKD, noise_scale, *_which_samples(mean_CD, num_per_class, seed)
        ),
        backends={"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
        samples=_low_rank_samples,
        benchmark_samples=_low_rank_benchmark,
        error_bound=sample_low_rank_error_bound,
        dtypes=(torch.float32, torch.float64),
        bytes_moved=lambda s: s.args[1].nbytes + s.args[0].nbytes * (s.args[3] + 1),
        flops=lambda s: 2 * s.args[1].numel() * s.args[3],
    )
)
