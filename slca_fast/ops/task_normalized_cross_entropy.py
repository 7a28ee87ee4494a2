"""Task-normalized cross-entropy over rows of logits (SLCA, arXiv 2303.05118); its reference.py has the equation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..kernels.task_normalized_cross_entropy.error_bound import task_normalized_cross_entropy_error_bound
from ..kernels.task_normalized_cross_entropy.native_kernel import task_normalized_cross_entropy_native
from ..kernels.task_normalized_cross_entropy.reference import (
    task_normalized_cross_entropy_reference,
    task_normalized_cross_entropy_rows,
)
from . import row_inputs
from .registry import OpSpec, Sample, register
from .row_loss import Implementation, RowLoss, accumulate_dtype


def _triton() -> Implementation:
    from ..kernels.task_normalized_cross_entropy.triton_kernel import task_normalized_cross_entropy_triton

    return task_normalized_cross_entropy_triton


_LOSS = RowLoss(
    name="task_normalized_cross_entropy",
    parameters={"task_sizes": list[int], "temperature": float},
    reference=task_normalized_cross_entropy_rows,
    native=task_normalized_cross_entropy_native,
    load_triton=_triton,
)


def task_normalized_cross_entropy(
    logits_BC: torch.Tensor,
    target_B: torch.Tensor,
    task_sizes: Sequence[int],
    temperature: float = 0.1,
    backend: str = "auto",
    *,
    check: bool = False,
) -> torch.Tensor:
    """Mean cross-entropy of ``z / n / temperature``, n the mean over tasks of ||z_k||; gradient flows through n.

    logits_BC: [B, C] float16, bfloat16, float32 or float64; computed in float32 (float64 in float64).
    target_B: [B] integer labels in [0, C).
    task_sizes: classes of every task, at least 1 each, adding up to C.
    Returns [] in the dtype of the logits, float32 under autocast; NaN for B = 0, like torch's cross_entropy.
    Raises ValueError for shapes, dtypes and devices that do not fit; with ``check``, which costs a device
    synchronisation, also for labels out of range and for NaN logits. Without it a label out of range raises on the CPU
    and gives NaN on other devices.
    """
    row_inputs.validate(_LOSS.name, logits_BC, target_B)
    sizes = [int(size) for size in task_sizes]
    if not sizes or min(sizes) < 1 or sum(sizes) != logits_BC.shape[1]:
        raise ValueError(
            f"task_normalized_cross_entropy: task_sizes must be positive and add up to C = {logits_BC.shape[1]}, "
            f"got {sizes} (sum {sum(sizes)})"
        )
    if not temperature > 0:
        raise ValueError(f"task_normalized_cross_entropy: temperature must be positive, got {temperature}")
    scale_B = _mean_scale(logits_BC)
    if check:
        row_inputs.check_values(_LOSS.name, logits_BC, target_B, scale_B)
    return _LOSS(logits_BC, target_B, scale_B, sizes, float(temperature), reduction="mean", backend=backend)


def task_normalized_cross_entropy_gradient(
    logits_BC: torch.Tensor,
    target_B: torch.Tensor,
    task_sizes: Sequence[int],
    temperature: float = 0.1,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss [] and its gradient [B, C] by the logits, without autograd; for loops that update weights by hand.

    Arguments as ``task_normalized_cross_entropy``, taken on trust: C and the labels are not checked on the device.
    """
    op = _LOSS.ops[_LOSS.choose(backend, logits_BC)]
    loss_B, gradient_BC = op(logits_BC, target_B, _mean_scale(logits_BC), list(task_sizes), float(temperature), True)
    return loss_B.sum(), gradient_BC


def _mean_scale(logits_BC: torch.Tensor) -> torch.Tensor:
    num_rows = logits_BC.shape[0]
    return logits_BC.new_full((num_rows,), 1.0 / max(num_rows, 1), dtype=accumulate_dtype(logits_BC.dtype))


def _sample(sizes: Sequence[int], num_rows: int, device: torch.device, dtype: torch.dtype) -> tuple:
    generator = torch.Generator().manual_seed(num_rows * 31 + sum(sizes))
    logits_BC = torch.randn(num_rows, sum(sizes), generator=generator).to(device, dtype).requires_grad_()
    return logits_BC, torch.randint(sum(sizes), (num_rows,), generator=generator).to(device), list(sizes)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for num_rows, sizes in (
        (0, (2, 3)), (1, (1,)), (1, (17,)), (3, (10, 10)), (4, (1, 7, 2, 20)), (5, (20,) * 9 + (16,)), (2, (500, 501))
    ):  # fmt: skip
        yield Sample(f"{num_rows}x{sum(sizes)} in {len(sizes)}", _sample(sizes, num_rows, device, dtype))
    logits_BC, target_B, sizes = _sample((3, 4, 5), 4, device, dtype)
    with torch.no_grad():
        logits_BC[1, 3:7] = 0.0
    yield Sample("4x12 with a zero task", (logits_BC, target_B, sizes, 0.05))


def _benchmark_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for sizes in ((20,) * 10, (100,) * 10):
        yield Sample(f"256x{sum(sizes)} in {len(sizes)}", _sample(sizes, 256, device, dtype))


register(
    OpSpec(
        name="task_normalized_cross_entropy",
        function=task_normalized_cross_entropy,
        reference=task_normalized_cross_entropy_reference,
        backends={"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
        samples=_samples,
        benchmark_samples=_benchmark_samples,
        error_bound=task_normalized_cross_entropy_error_bound,
        bytes_moved=lambda sample: 2 * sample.args[0].numel() * sample.args[0].element_size(),
    )
)
