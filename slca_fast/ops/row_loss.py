"""Losses that are a weighted sum over rows of logits: one forward that may also write the gradient.

The gradient is computed while the logits are at hand (one read, one write) and only rescaled in the backward, in place,
where the upstream gradient is not 1. It is recomputed instead for float16 (a gradient rounded before the loss scale is
applied would underflow), under torch.compile (no mutation in the graph) and in a second backward of the same graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..kernels import native, triton_runtime
from ..kernels.row_loss.rows import Rows
from .registry import choose_backend, late_op
from .row_inputs import raise_for_labels

Implementation = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""``f(rows, *parameters) -> (loss_B, gradient_BC)``, as ``Rows`` says."""


@dataclass(frozen=True)
class RowLoss:
    """A loss over rows of logits: its name, its parameters and who computes it."""

    name: str
    parameters: Mapping[str, Any]
    """Names and types of what it takes beside the rows, in order, as torch.library infers a schema from them."""
    reference: Implementation
    native: Implementation
    load_triton: Callable[[], Implementation]
    """Returns the Triton implementation: triton is imported at its first call."""
    ops: dict[str, Callable[..., Any]] = field(init=False, repr=False, compare=False)
    """The op ``slca_fast::<name>_<backend>`` of every backend, registered by its first call."""

    def __post_init__(self) -> None:
        backends = ("reference", "triton", "native")
        ops = {backend: late_op(f"{self.name}_{backend}", partial(self._define, backend)) for backend in backends}
        object.__setattr__(self, "ops", ops)

    def __call__(
        self,
        logits_BC: torch.Tensor,
        target_B: torch.Tensor,
        scale_B: torch.Tensor,
        *parameters: Any,
        reduction: str,
        backend: str,
    ) -> torch.Tensor:
        """The rows' losses times ``scale_B``, summed unless ``reduction`` is "none", in the dtype eager would return.

        Raises ValueError when an explicit ``backend`` cannot run.
        """
        op = self.ops[self.choose(backend, logits_BC)]
        loss_B, _ = op(logits_BC, target_B.long(), scale_B, *parameters, _wants_gradient_in_forward(logits_BC))
        return _reduce(loss_B, reduction, logits_BC)

    def choose(self, backend: str, logits_BC: torch.Tensor) -> str:
        """The backend for these logits; ValueError when an explicit choice cannot be met."""
        dtype = logits_BC.dtype
        double = "it computes in float32; float64 logits go to the reference" if dtype == torch.float64 else None
        half = "float16 logits go to the reference on the CPU" if dtype == torch.float16 else None
        return choose_backend(
            self.name,
            backend,
            logits_BC.device,
            native=double or half or native.why_not(f"slca_{self.name}"),
            triton=double or triton_runtime.why_not(logits_BC.device.type),
        )

    def _define(self, backend: str, op_name: str) -> None:
        # Triton's interpreter takes tensors as they are; for a device the compiler should see the kernel itself.
        visible = backend == "triton" and not triton_runtime.interpreted()
        make_op = torch.library.triton_op if visible else torch.library.custom_op
        op = make_op(op_name, self._implementation(backend), mutates_args=())
        op.register_fake(_fake)
        op.register_autograd(partial(_backward, op), setup_context=_save)

    def _implementation(self, backend: str) -> Implementation:
        """What the op of ``backend`` runs; on the CPU a label out of range raises the ValueError that names it."""
        compute = {"reference": self.reference, "native": self.native}.get(backend) or self.load_triton()

        def run(
            logits_BC: torch.Tensor, target_B: torch.Tensor, scale_B: torch.Tensor, *rest: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            *parameters, with_gradient = rest
            if backend == "reference" and logits_BC.device.type == "cpu":
                raise_for_labels(self.name, logits_BC.shape[1], target_B, scale_B)
            try:
                return compute(Rows(logits_BC, target_B, scale_B, with_gradient), *parameters)
            except native.NativeError:
                raise_for_labels(self.name, logits_BC.shape[1], target_B, scale_B)
                raise

        run.__signature__ = self._signature()
        return run

    def _signature(self) -> inspect.Signature:
        """Of the ops: torch infers their schemas from it, some versions of triton_op whatever else they are told."""
        tensors = dict.fromkeys(("logits_BC", "target_B", "scale_B"), torch.Tensor)
        types = {**tensors, **self.parameters, "with_gradient": bool}
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        arguments = [inspect.Parameter(name, kind, annotation=hint) for name, hint in types.items()]
        return inspect.Signature(arguments, return_annotation=tuple[torch.Tensor, torch.Tensor])


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a loss over logits of ``dtype`` is computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wants_gradient_in_forward(logits_BC: torch.Tensor) -> bool:
    """Whether the forward should write the gradient too."""
    return (
        torch.is_grad_enabled()
        and logits_BC.requires_grad
        and logits_BC.dtype != torch.float16
        and not torch.compiler.is_compiling()
    )


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
        from ..kernels.row_loss.triton_kernel import scale_rows_

        scale_rows_(gradient_BC, upstream_B)


def _reduce(loss_B: torch.Tensor, reduction: str, logits_BC: torch.Tensor) -> torch.Tensor:
    """``loss_B`` summed unless ``reduction`` is "none", in the dtype eager torch would return."""
    result = loss_B if reduction == "none" else loss_B.sum()
    if reduction == "mean" and logits_BC.shape[0] == 0:
        result = result / 0.0
    # Asked about the meta device, which has no autocast, torch raises.
    if logits_BC.device.type != "meta" and torch.is_autocast_enabled(logits_BC.device.type):
        return result
    return result.to(logits_BC.dtype)
