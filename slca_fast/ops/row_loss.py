"""Losses that are a weighted sum over rows of logits: one forward that may also write the gradient.

The gradient is computed while the logits are at hand (one read, one write) and only rescaled in the backward, in place,
where the upstream gradient is not 1. It is recomputed instead for float16 (a gradient rounded before the loss scale is
applied would underflow), under torch.compile (no mutation in the graph) and in a second backward of the same graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ..kernels import native, triton_runtime
from .registry import choose_backend, late_op


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a loss over logits of ``dtype`` is computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wants_gradient_in_forward(logits_BC: torch.Tensor) -> bool:
    """Whether the forward should write the gradient too."""
    return (
        torch.is_grad_enabled()
        and logits_BC.requires_grad
        and logits_BC.dtype != torch.float16
        and not torch.compiler.is_compiling()
    )


def define(name: str, backends: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The ops ``slca_fast::<name>_<backend>`` of every implementation, by backend, each registered by its first call.

    An implementation is ``f(logits_BC, target_B, scale_B, *parameters, with_gradient) -> (loss_B, gradient_BC)``, where
    ``gradient_BC`` is a tensor of no elements unless ``with_gradient``. Both come multiplied by ``scale_B``.
    """
    return {backend: late_op(f"{name}_{backend}", partial(_define, f, backend)) for backend, f in backends.items()}


def _define(implementation: Callable[..., Any], backend: str, name: str) -> None:
    # Triton's interpreter takes tensors as they are; for a device the compiler should see the kernel itself.
    visible = backend == "triton" and not triton_runtime.interpreted()
    make_op = torch.library.triton_op if visible else torch.library.custom_op
    op = make_op(name, implementation, mutates_args=())
    op.register_fake(_fake)
    op.register_autograd(partial(_backward, op), setup_context=_save)


def _fake(logits_BC: torch.Tensor, target_B: torch.Tensor, scale_B: torch.Tensor, *rest: Any) -> Any:
    with_gradient = rest[-1]
    gradient = torch.empty_like(logits_BC, memory_format=torch.contiguous_format)
    return torch.empty_like(scale_B), gradient if with_gradient else logits_BC.new_empty(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits_BC, target_B, scale_B, *ctx.parameters, with_gradient = inputs
    ctx.save_for_backward(logits_BC, target_B, scale_B)
    # Held outside save_for_backward so that the backward can give it away instead of copying it.
    ctx.gradient_BC = output[1].detach() if with_gradient else None
    ctx.mark_non_differentiable(output[1])
    # Or autograd would hand the backward a gradient of zeros, as large as the logits, for output[1].
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)


def _backward(
    op: Callable[..., Any], ctx: Any, upstream_B: torch.Tensor | None, _: Any
) -> tuple[torch.Tensor | None, ...]:
    if upstream_B is None:
        return (None,) * ctx.num_inputs
    logits_BC, target_B, scale_B = ctx.saved_tensors
    gradient_BC, ctx.gradient_BC = ctx.gradient_BC, None
    with torch.no_grad():
        if gradient_BC is None or type(upstream_B) is not torch.Tensor:
            gradient_BC = op(logits_BC, target_B, scale_B * upstream_B, *ctx.parameters, True)[1]
        else:
            _scale_rows_(gradient_BC, upstream_B)
    if torch.is_grad_enabled():  # create_graph=True
        gradient_BC = _NoSecondDerivative.apply(gradient_BC, logits_BC, upstream_B)
    return (gradient_BC, *[None] * (ctx.num_inputs - 1))


class _NoSecondDerivative(torch.autograd.Function):
    """The gradient itself, tied to what it depends on, so that differentiating it is an error and not a silent 0."""

    @staticmethod
    def forward(ctx: Any, gradient_BC: torch.Tensor, *depends_on: torch.Tensor) -> torch.Tensor:
        return gradient_BC.view_as(gradient_BC)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        raise RuntimeError(
            "slca_fast: the losses have no second derivative, so a gradient taken with create_graph=True cannot be "
            "differentiated; take it without create_graph, or write the loss in torch operations"
        )


def _scale_rows_(gradient_BC: torch.Tensor, upstream_B: torch.Tensor) -> None:
    """Multiplies row i of ``gradient_BC`` by ``upstream_B[i]``, reading nothing where that is 1."""
    if gradient_BC.device.type == "cpu":
        if not bool((upstream_B == 1).all()):
            gradient_BC.mul_(upstream_B[:, None])
    else:
        from ..kernels.symmetric_cross_entropy.triton_kernel import scale_rows_

        scale_rows_(gradient_BC, upstream_B)


def choose(name: str, backend: str, logits_BC: torch.Tensor) -> str:
    """The backend of loss ``name`` for these logits; ValueError when an explicit choice cannot be met."""
    dtype = logits_BC.dtype
    double = "it computes in float32; float64 logits go to the reference" if dtype == torch.float64 else None
    half = "float16 logits go to the reference on the CPU" if dtype == torch.float16 else None
    return choose_backend(
        name,
        backend,
        logits_BC.device,
        native=double or half or native.why_not(f"slca_{name}"),
        triton=double or triton_runtime.why_not(logits_BC.device.type),
    )


def validate(name: str, logits_BC: torch.Tensor, target_B: torch.Tensor) -> None:
    """Raises ValueError unless logits are floating [B, C >= 1] and targets integer [B] on the same device."""
    _require_tensor(name, "logits", logits_BC)
    _require_tensor(name, "targets", target_B)
    if logits_BC.dim() != 2 or logits_BC.shape[1] == 0:
        raise ValueError(f"{name}: logits must be [B, C] with C >= 1, got shape {list(logits_BC.shape)}")
    if logits_BC.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"{name}: logits must be float16, bfloat16, float32 or float64, got {logits_BC.dtype}")
    if target_B.dim() != 1 or target_B.shape[0] != logits_BC.shape[0]:
        raise ValueError(
            f"{name}: targets must be [{logits_BC.shape[0]}] for logits {list(logits_BC.shape)}, "
            f"got shape {list(target_B.shape)}"
        )
    if target_B.dtype.is_floating_point or target_B.dtype.is_complex or target_B.dtype == torch.bool:
        raise ValueError(f"{name}: targets must be integers, got {target_B.dtype}")
    if target_B.device != logits_BC.device:
        raise ValueError(f"{name}: logits are on {logits_BC.device}, targets on {target_B.device}")


def _require_tensor(name: str, argument: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name}: {argument} must be a tensor, got {type(value).__name__}; pass torch.as_tensor(it)")


def validate_weight(name: str, row_weight_B: torch.Tensor, logits_BC: torch.Tensor) -> None:
    """Raises ValueError unless the row weights are a floating constant [B] on the logits' device."""
    _require_tensor(name, "row_weight_B", row_weight_B)
    if row_weight_B.shape != logits_BC.shape[:1]:
        raise ValueError(f"{name}: row_weight_B must be [{logits_BC.shape[0]}], got shape {list(row_weight_B.shape)}")
    if not row_weight_B.dtype.is_floating_point:
        raise ValueError(f"{name}: row_weight_B must be floating point, got {row_weight_B.dtype}")
    if row_weight_B.device != logits_BC.device:
        raise ValueError(f"{name}: logits are on {logits_BC.device}, row_weight_B on {row_weight_B.device}")
    if row_weight_B.requires_grad:
        raise ValueError(f"{name}: row_weight_B gets no gradient; pass row_weight_B.detach()")


def check_values(name: str, logits_BC: torch.Tensor, target_B: torch.Tensor, scale_B: torch.Tensor) -> None:
    """Raises ValueError for a label out of range or a NaN logit in a row that counts; reads the device."""
    raise_for_labels(name, logits_BC.shape[1], target_B, scale_B)
    nan_B = logits_BC.detach().isnan().any(dim=1) & (scale_B != 0)
    if bool(nan_B.any()):
        raise ValueError(f"{name}: logits of row {int(nan_B.nonzero()[0])} are NaN")


def raise_for_labels(name: str, num_classes: int, target_B: torch.Tensor, scale_B: torch.Tensor) -> None:
    """Raises ValueError for a label outside [0, C) in a row that counts (scale neither 0 nor NaN); reads the device."""
    bad_B = ((target_B < 0) | (target_B >= num_classes)) & (scale_B != 0) & (scale_B == scale_B)
    if bool(bad_B.any()):
        row = int(bad_B.nonzero()[0])
        raise ValueError(f"{name}: label {int(target_B[row])} of row {row} is outside [0, {num_classes})")


@contextlib.contextmanager
def naming_the_label(
    name: str, logits_BC: torch.Tensor, target_B: torch.Tensor, scale_B: torch.Tensor
) -> Iterator[None]:
    """Turns the native library's "a label is out of range" into the ValueError that names it."""
    try:
        yield
    except native.NativeError:
        raise_for_labels(name, logits_BC.shape[1], target_B, scale_B)
        raise


def reduce(loss_B: torch.Tensor, reduction: str, logits_BC: torch.Tensor) -> torch.Tensor:
    """``loss_B`` summed unless ``reduction`` is "none", in the dtype eager torch would return."""
    result = loss_B if reduction == "none" else loss_B.sum()
    if reduction == "mean" and logits_BC.shape[0] == 0:
        result = result / 0.0
    # Asked about the meta device, which has no autocast, torch raises.
    if logits_BC.device.type != "meta" and torch.is_autocast_enabled(logits_BC.device.type):
        return result
    return result.to(logits_BC.dtype)
