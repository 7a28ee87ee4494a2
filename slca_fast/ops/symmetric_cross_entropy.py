"""Symmetric cross-entropy over rows of logits (SLCA++, arXiv 2408.08295); its reference.py holds the equation."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..kernels.symmetric_cross_entropy.error_bound import symmetric_cross_entropy_error_bound
from ..kernels.symmetric_cross_entropy.native_kernel import symmetric_cross_entropy_native
from ..kernels.symmetric_cross_entropy.reference import (
    symmetric_cross_entropy_reference,
    symmetric_cross_entropy_rows,
)
from . import row_inputs
from .registry import OpSpec, Sample, register
from .row_loss import Implementation, RowLoss, accumulate_dtype


def _triton() -> Implementation:
    from ..kernels.symmetric_cross_entropy.triton_kernel import symmetric_cross_entropy_triton

    return symmetric_cross_entropy_triton


_LOSS = RowLoss(
    name="symmetric_cross_entropy",
    parameters={"ce_weight": float, "rce_weight": float},
    reference=symmetric_cross_entropy_rows,
    native=symmetric_cross_entropy_native,
    load_triton=_triton,
)


def symmetric_cross_entropy(
    logits_BC: torch.Tensor,
    target_B: torch.Tensor,
    ce_weight: float = 1.0,
    rce_weight: float = 1.0,
    reduction: str = "mean",
    backend: str = "auto",
    *,
    row_weight_B: torch.Tensor | None = None,
    ignore_index: int = -100,
    check: bool = False,
) -> torch.Tensor:
    """``ce_weight * CE + rce_weight * RCE`` with its exact gradient (clamps included).

    logits_BC: [B, C] float16, bfloat16, float32 or float64; computed in float32 (float64 in float64).
    target_B: [B] integer labels in [0, C). Rows labelled ``ignore_index`` and rows of weight 0 are not looked at,
        so they may hold anything; their gradient is 0.
    row_weight_B: [B] floating point of any width, a constant (it gets no gradient). "mean" is
        ``sum(w_i L_i) / sum(w_i)``; like torch's cross_entropy it is NaN when nothing is left to average.
    Returns [] ("mean", "sum") or [B] ("none") in the dtype of the logits, float32 under autocast.
    Raises ValueError for shapes, dtypes and devices that do not fit; with ``check``, which costs a device
    synchronisation, also for labels out of range and for NaN logits. Without it a label out of range raises on the CPU
    and gives NaN on other devices.
    """
    row_inputs.validate(_LOSS.name, logits_BC, target_B)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"symmetric_cross_entropy: reduction must be mean, sum or none, got {reduction!r}")
    dtype = accumulate_dtype(logits_BC.dtype)
    weight_B = (target_B != ignore_index).to(dtype)
    if row_weight_B is not None:
        row_inputs.validate_weight(_LOSS.name, row_weight_B, logits_BC)
        weight_B = weight_B * row_weight_B.to(dtype)
    if check:
        row_inputs.check_values(_LOSS.name, logits_BC, target_B, weight_B)
    scale_B = weight_B / weight_B.sum() if reduction == "mean" else weight_B
    return _LOSS(logits_BC, target_B, scale_B, ce_weight, rce_weight, reduction=reduction, backend=backend)


def _logits(num_rows: int, num_classes: int, device: torch.device, dtype: torch.dtype, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows * 31 + num_classes)
    logits_BC = torch.randn(num_rows, num_classes, generator=generator) * spread
    return logits_BC.to(device, dtype).requires_grad_()


def _targets(num_rows: int, num_classes: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows + 7 * num_classes)
    return torch.randint(num_classes, (num_rows,), generator=generator).to(device)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_rows, num_classes, spread in ((0, 5, 1), (1, 1, 1), (1, 17, 2), (3, 10, 20), (5, 129, 8), (8, 1000, 3)):
        args = (_logits(num_rows, num_classes, device, dtype, spread), _targets(num_rows, num_classes, device))
        yield Sample(f"{num_rows}x{num_classes}", args)
        yield Sample(f"{num_rows}x{num_classes} sum", (*args, 0.5, 0.5), {"reduction": "sum"})
    target_B = _targets(6, 33, device)
    target_B[2] = -100
    weight_B = torch.tensor([1.0, 0.0, 1.0, 0.5, 2.0, 1.0], device=device)
    for reduction in ("mean", "none"):
        yield Sample(
            f"6x33 weighted, ignored, {reduction}",
            (_logits(6, 33, device, dtype, 3), target_B, 1.0, 0.1),
            {"reduction": reduction, "row_weight_B": weight_B},
        )
    args = (_logits(6, 33, device, dtype, 3), target_B)
    yield Sample("6x33 weighted in float64", args, {"row_weight_B": weight_B.double()})


def _benchmark_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_rows, num_classes in ((128, 20), (128, 1000), (4096, 21841)):
        args = (_logits(num_rows, num_classes, device, dtype, 3), _targets(num_rows, num_classes, device))
        yield Sample(f"{num_rows}x{num_classes}", args)


register(
    OpSpec(
        name="symmetric_cross_entropy",
        function=symmetric_cross_entropy,
        reference=symmetric_cross_entropy_reference,
        backends={"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
        samples=_samples,
        benchmark_samples=_benchmark_samples,
        error_bound=symmetric_cross_entropy_error_bound,
        bytes_moved=lambda sample: 2 * sample.args[0].numel() * sample.args[0].element_size(),
    )
)
