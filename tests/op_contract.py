"""What every op owes: the pieces that tests/test_op_contract.py puts together for the whole registry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slca_fast.kernels import native, triton_runtime
from slca_fast.ops.registry import OpSpec, Sample

Result = list[torch.Tensor]


def usable_backends(spec: OpSpec, device_type: str) -> list[str]:
    """The backends of ``spec`` that this process can run."""
    unusable = set()
    if triton_runtime.why_not(device_type):
        unusable.add("triton")
    if not native.available():
        unusable.add("native")
    return [backend for backend in spec.backends.get(device_type, ()) if backend not in unusable]


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(change, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(found.append, value)
    return found


def with_leaves(sample: Sample, dtype: torch.dtype | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Fresh copies of the sample's arguments, floating ones (and floating dtypes) in ``dtype`` if one is given."""

    def fresh(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_(tensor.requires_grad)

    args, kwargs = map_tensors(fresh, sample.args), map_tensors(fresh, sample.kwargs)
    if dtype is not None:
        is_float = {name for name, v in kwargs.items() if isinstance(v, torch.dtype) and v.is_floating_point}
        kwargs = {name: dtype if name in is_float else value for name, value in kwargs.items()}
    return args, kwargs


def upstream_of(outputs: Result) -> Result:
    """A random upstream gradient (seeded) for every one of ``outputs``."""
    generator = torch.Generator().manual_seed(11)
    return [
        # rounded to bfloat16 so that every dtype sees the same numbers
        torch.randn(output.shape, generator=generator).bfloat16().to(output.device, output.dtype)
        for output in outputs
    ]


def outputs_and_gradients(function: Callable[..., Any], args: Any, kwargs: Any, **extra: Any) -> tuple[Result, Result]:
    """Outputs, and the gradients of every differentiable input under ``upstream_of`` the outputs."""
    outputs = tensors_of(function(*args, **kwargs, **extra))
    leaves = [tensor for tensor in tensors_of((args, kwargs)) if tensor.requires_grad]
    differentiable = [output for output in outputs if output.requires_grad]
    if not leaves or not differentiable:
        return [output.detach() for output in outputs], []
    gradients = torch.autograd.grad(differentiable, leaves, upstream_of(differentiable), allow_unused=True)
    assert all(gradient is not None for gradient in gradients), "an input that requires a gradient got none"
    return [output.detach() for output in outputs], list(gradients)


def assert_keeps_the_bound(spec: OpSpec, function: Callable[..., Any], sample: Sample, dtype: torch.dtype) -> None:
    """Every output and gradient of ``function`` is as near to the float64 truth as ``spec`` demands of the op."""
    truth = outputs_and_gradients(spec.reference, *with_leaves(sample, torch.float64))
    eager = outputs_and_gradients(spec.reference, *with_leaves(sample))
    with poisoned_memory():
        ours = outputs_and_gradients(function, *with_leaves(sample))
    upstream = upstream_of(truth[0]) if truth[1] else []
    bounds = spec.error_bound(upstream, *sample.args, **sample.kwargs)
    for kind, results in zip(("output", "gradient"), zip(ours, eager, truth, bounds)):
        assert len({len(result) for result in results}) == 1, f"{sample.label}: {[len(r) for r in results]} {kind}s"
        for index, quadruple in enumerate(zip(*results)):
            _assert_near(*quadruple, spec.error_margin, dtype, f"{sample.label}: {kind} {index}")


def _assert_near(
    ours: torch.Tensor,
    eager: torch.Tensor,
    truth: torch.Tensor,
    bound: torch.Tensor,
    margin: float,
    dtype: torch.dtype,
    what: str,
) -> None:
    """|ours - truth| <= bound, element by element, or margin * eager's largest error where that is more."""
    assert ours.shape == truth.shape == bound.shape, f"{what}: shapes {ours.shape}, {truth.shape}, {bound.shape}"
    assert ours.dtype == eager.dtype, f"{what}: {ours.dtype} instead of {eager.dtype}"
    if not ours.is_floating_point():
        assert torch.equal(ours, truth), what
        return
    assert torch.equal(ours.isnan(), truth.isnan()), f"{what}: NaN in other places than the truth"
    counts = ~truth.isnan()
    if not counts.any():
        return
    assert bound[counts].isfinite().all(), f"{what}: no finite bound"
    error, eager_error = ((t.double() - truth)[counts].abs() for t in (ours, eager))
    # In float64 the truth errs as much itself; Triton's interpreter cuts bfloat16 off instead of rounding.
    twice = dtype == torch.float64 or (dtype == torch.bfloat16 and triton_runtime.interpreted())
    derived = bound[counts] * (2 if twice else 1)
    allowed = derived.clamp(min=margin * eager_error.max().item())
    worst = int((error - allowed).argmax())
    assert error[worst] <= allowed[worst], (
        f"{what}: error {error[worst]:.3g}, allowed {allowed[worst]:.3g} "
        f"(derived {derived[worst]:.3g}, eager's own at most {eager_error.max():.3g})"
    )


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN (or the largest integer), so that an element nobody writes is seen."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


class RecordedCalls(TorchDispatchMode):
    """Remembers calls of operators in the slca_fast namespace with copies of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "slca_fast":
            copy = lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad)  # noqa: E731
            self.calls.append((func, map_tensors(copy, args), map_tensors(copy, kwargs)))
        return func(*args, **kwargs)


def call(spec: OpSpec, backend: str) -> Callable[..., Any]:
    """The public function bound to ``backend``; skips the test where the backend says it cannot serve the call."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return spec.function(*args, backend=backend, **kwargs)
        except ValueError as error:
            if f"backend {backend!r} cannot be used" in str(error):
                pytest.skip(str(error))
            raise

    return run
