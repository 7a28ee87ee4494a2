"""The contract of every op in the registry, on every backend: adding an op to the table adds it here."""

from __future__ import annotations

import pytest
import torch
from op_contract import (
    RecordedCalls,
    assert_keeps_the_bound,
    call,
    outputs_and_gradients,
    tensors_of,
    usable_backends,
    with_leaves,
)

from slca_fast.ops.registry import OpSpec, Sample, all_ops, late_op

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CASES = [
    pytest.param(
        spec, backend, device_type, id=f"{name}-{backend}-{device_type}", marks=GPU if device_type == "cuda" else []
    )
    for name, spec in all_ops().items()
    for device_type in ("cpu", "cuda")
    for backend in usable_backends(spec, device_type)
]
over_cases = pytest.mark.parametrize(("spec", "backend", "device_type"), CASES)


def some_samples(spec: OpSpec, device_type: str, dtype: torch.dtype, most: int) -> list[Sample]:
    samples = list(spec.samples(torch.device(device_type), dtype))
    return samples[:: max(1, -(-len(samples) // most))]


@over_cases
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_every_result_is_as_near_to_the_truth_as_its_arithmetic_allows(spec, backend, device_type, dtype):
    if dtype not in spec.dtypes:
        pytest.skip(f"{spec.name} does not take {dtype}")
    for sample in spec.samples(torch.device(device_type), dtype):
        assert_keeps_the_bound(spec, call(spec, backend), sample, dtype)


@over_cases
def test_inputs_are_left_alone(spec, backend, device_type):
    for sample in some_samples(spec, device_type, torch.float32, 3):
        args, kwargs = with_leaves(sample)
        before = [tensor.detach().clone() for tensor in tensors_of((args, kwargs))]
        outputs_and_gradients(call(spec, backend), args, kwargs)
        for old, new in zip(before, tensors_of((args, kwargs))):
            torch.testing.assert_close(old, new.detach(), rtol=0, atol=0, equal_nan=True)


@over_cases
def test_strided_inputs_give_the_same(spec, backend, device_type):
    for sample in some_samples(spec, device_type, torch.float32, 2):
        args, kwargs = with_leaves(sample)
        strided = tuple(
            torch.stack([a.detach(), torch.zeros_like(a)], -1)[..., 0].requires_grad_()
            if isinstance(a, torch.Tensor) and a.requires_grad
            else a
            for a in args
        )
        ours = outputs_and_gradients(call(spec, backend), strided, kwargs)
        dense = outputs_and_gradients(call(spec, backend), args, kwargs)
        for a, b in zip([*ours[0], *ours[1]], [*dense[0], *dense[1]]):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.slow
@over_cases
def test_opcheck(spec, backend, device_type):
    for sample in some_samples(spec, device_type, torch.float32, 2):
        args, kwargs = with_leaves(sample)
        with RecordedCalls() as recorded:
            call(spec, backend)(*args, **kwargs)
        for op, op_args, op_kwargs in recorded.calls:
            torch.library.opcheck(op, op_args, op_kwargs)


@pytest.mark.slow
@over_cases
def test_compiles_without_graph_breaks(spec, backend, device_type):
    for sample in some_samples(spec, device_type, torch.float32, 2):
        args, kwargs = with_leaves(sample)
        eager = outputs_and_gradients(call(spec, backend), args, kwargs)
        torch.compiler.reset()
        compiled = torch.compile(spec.function, fullgraph=True, backend="aot_eager")
        ours = outputs_and_gradients(compiled, args, kwargs, backend=backend)
        for a, b in zip([*ours[0], *ours[1]], [*eager[0], *eager[1]]):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.slow
@over_cases
def test_compiles_with_inductor(spec, backend, device_type):
    sample = some_samples(spec, device_type, torch.float32, 2)[-1]
    args, kwargs = with_leaves(sample)
    eager = outputs_and_gradients(call(spec, backend), args, kwargs)
    torch.compiler.reset()
    compiled = torch.compile(spec.function, fullgraph=True)
    ours = outputs_and_gradients(compiled, args, kwargs, backend=backend)
    for a, b in zip([*ours[0], *ours[1]], [*eager[0], *eager[1]]):
        torch.testing.assert_close(a, b, equal_nan=True)


@over_cases
def test_runs_under_autocast(spec, backend, device_type):
    for sample in some_samples(spec, device_type, torch.float32, 1):
        args, kwargs = with_leaves(sample)
        with torch.autocast(device_type, torch.bfloat16):
            outputs, gradients = outputs_and_gradients(call(spec, backend), args, kwargs)
        leaves = [tensor for tensor in tensors_of((args, kwargs)) if tensor.requires_grad]
        assert [g.dtype for g in gradients] == [leaf.dtype for leaf in leaves]
        truth = tensors_of(spec.reference(*args, **kwargs))
        for a, b in zip(outputs, truth):
            torch.testing.assert_close(a.float(), b.detach().float(), rtol=2e-2, atol=2e-1, equal_nan=True)


@pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in all_ops().items()])
def test_a_backend_that_cannot_run_says_so(spec):
    sample = next(iter(spec.samples(torch.device("cpu"), torch.float32)))
    with pytest.raises(ValueError, match="backend must be one of"):
        spec.function(*sample.args, **sample.kwargs, backend="cuda")
    assert "reference" in spec.backends["cpu"] and "reference" in spec.backends["cuda"]
    for backend in {"native", "triton"} - set(usable_backends(spec, "cpu")):
        with pytest.raises(ValueError, match=backend):
            spec.function(*sample.args, **sample.kwargs, backend=backend)


def test_an_op_first_called_while_compiling_is_registered_without_a_graph_break():
    def define(name: str) -> None:
        torch.library.custom_op(name, lambda x: x + 1, mutates_args=(), schema="(Tensor x) -> Tensor").register_fake(
            torch.empty_like
        )

    op = late_op("defined_while_compiling", define)
    compiled = torch.compile(lambda x: op(x * 2), fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(2)).tolist() == op(torch.full((2,), 2.0)).tolist() == [3.0, 3.0]
