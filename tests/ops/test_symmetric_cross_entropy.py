"""Symmetric cross-entropy against the definition itself (not our reference), bad input, autograd's corners."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from op_contract import usable_backends

from slca_fast.ops.registry import REGISTRY
from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy

BACKENDS = usable_backends(REGISTRY["symmetric_cross_entropy"], "cpu")
over_backends = pytest.mark.parametrize("backend", BACKENDS)


def defined_loss(logits: list[float], label: int, a: float, b: float) -> float:
    """a CE + b RCE of one row, term by term in Python floats."""
    largest = max(logits)
    weights = [math.exp(z - largest) for z in logits]
    probabilities = [w / sum(weights) for w in weights]
    ce = math.log(sum(weights)) + largest - logits[label]
    rce = 0.0
    for k, p in enumerate(probabilities):
        one_hot = 1.0 if k == label else 0.0
        rce -= min(max(p, 1e-7), 1.0) * math.log(min(max(one_hot, 1e-4), 1.0))
    return a * ce + b * rce


def spread_logits(num_rows: int, num_classes: int, seed: int = 0) -> torch.Tensor:
    """Float64 logits whose probabilities go far below the clamp at 1e-7."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64) * 12


def test_value_follows_the_definition_with_active_clamps():
    logits_BC = spread_logits(6, 9)
    assert (logits_BC.softmax(1) < 1e-7).any(dim=1).all()
    target_B = torch.tensor([0, 8, 3, 3, 5, 1])
    ours_B = symmetric_cross_entropy(logits_BC, target_B, 0.7, 0.3, "none")
    expected_B = [defined_loss(z, y, 0.7, 0.3) for z, y in zip(logits_BC.tolist(), target_B.tolist())]
    torch.testing.assert_close(ours_B, torch.tensor(expected_B, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.1)))
def test_gradient_is_the_finite_difference_with_active_clamps(weights):
    logits_BC = spread_logits(4, 7, seed=3).requires_grad_()
    target_B = torch.tensor([2, 0, 6, 4])
    loss = symmetric_cross_entropy(logits_BC, target_B, *weights)
    (gradient_BC,) = torch.autograd.grad(loss, logits_BC)
    step = 1e-4
    for row in range(4):
        for column in range(7):
            z = logits_BC[row].tolist()
            values = []
            for h in (-2 * step, -step, step, 2 * step):  # fourth order: error near 1e-12 here
                moved = list(z)
                moved[column] += h
                values.append(defined_loss(moved, int(target_B[row]), *weights))
            difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step) / 4
            assert abs(gradient_BC[row, column].item() - difference) < 2e-10


@over_backends
def test_float32_gradient_with_active_clamps(backend):
    logits_BC = spread_logits(5, 40, seed=5).float().requires_grad_()
    target_B = torch.tensor([2, 0, 39, 4, 16])
    double_BC = logits_BC.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(symmetric_cross_entropy(double_BC, target_B, 0.5, 0.5), double_BC)
    (ours,) = torch.autograd.grad(symmetric_cross_entropy(logits_BC, target_B, 0.5, 0.5, backend=backend), logits_BC)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=3e-7)


@over_backends
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_rows_that_do_not_count_may_hold_anything(backend, dtype):
    if backend == "native" and dtype == torch.float16:
        pytest.skip("float16 goes to the reference")
    logits_BC = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits_BC[1] = math.nan
    logits_BC[3] = math.inf
    logits_BC.requires_grad_()
    target_B = torch.tensor([1, -100, 4, 999, 10])
    weight_B = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    loss = symmetric_cross_entropy(logits_BC, target_B, row_weight_B=weight_B, backend=backend)
    loss.backward()
    kept = [0, 2, 4]
    kept_BC = logits_BC.detach()[kept].requires_grad_()
    expected = symmetric_cross_entropy(kept_BC, target_B[kept], backend=backend)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits_BC.grad[kept], kept_BC.grad)
    assert torch.equal(logits_BC.grad[[1, 3]], torch.zeros(2, 11, dtype=dtype))


@over_backends
def test_nothing_left_to_average_is_nan_as_in_torch(backend):
    logits_BC, target_B = torch.randn(2, 3), torch.full((2,), -100)
    assert torch.nn.functional.cross_entropy(logits_BC, target_B).isnan()
    assert symmetric_cross_entropy(logits_BC, target_B, backend=backend).isnan()
    assert symmetric_cross_entropy(logits_BC[:0], target_B[:0], backend=backend).isnan()


@over_backends
def test_plain_cross_entropy_is_torchs(backend):
    logits_BC = torch.randn(7, 13, requires_grad=True)
    target_B = torch.randint(13, (7,), dtype=torch.int32)
    (ours,) = torch.autograd.grad(symmetric_cross_entropy(logits_BC, target_B, 1.0, 0.0, backend=backend), logits_BC)
    (torchs,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits_BC, target_B.long()), logits_BC)
    torch.testing.assert_close(ours, torchs)


@over_backends
def test_nan_and_infinite_logits_come_through(backend):
    logits_BC = torch.randn(3, 50)
    logits_BC[0, 7] = math.nan
    logits_BC[1, 7] = -math.inf
    loss_B = symmetric_cross_entropy(logits_BC, torch.tensor([1, 2, 3]), reduction="none", backend=backend)
    assert loss_B.isnan().tolist() == [True, False, False]
    assert loss_B.isfinite().tolist() == [False, True, True]


@over_backends
@pytest.mark.parametrize("upstream", (1.0, 0.0, 3.0))
def test_every_backward_of_a_kept_graph_is_the_same(backend, upstream):
    logits_BC = torch.randn(4, 6, requires_grad=True)
    loss = symmetric_cross_entropy(logits_BC, torch.arange(4), backend=backend)
    for repeat in range(1, 4):
        loss.backward(torch.tensor(upstream), retain_graph=True)
        if repeat == 1:
            first = logits_BC.grad.clone()
        torch.testing.assert_close(logits_BC.grad, repeat * first)


@over_backends
def test_float16_keeps_small_gradients_under_a_loss_scale(backend):
    if backend == "native":
        pytest.skip("float16 goes to the reference")
    # Below -6 the gradient would not fit float16 under this scale either.
    logits_BC = (torch.randn(2, 30) * 2).clamp(min=-6).half().requires_grad_()
    with torch.no_grad():
        logits_BC[:, 0] = 18.0
    loss = symmetric_cross_entropy(logits_BC, torch.zeros(2, dtype=torch.long), 1.0, 0.0, "sum", backend)
    (gradient,) = torch.autograd.grad(loss.float() * 4096.0, logits_BC)
    assert (gradient != 0).all()


@over_backends
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_dtype_of_the_result(backend, dtype):
    logits_BC, target_B = torch.randn(3, 5, dtype=dtype), torch.arange(3)
    assert symmetric_cross_entropy(logits_BC, target_B, backend=backend).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert symmetric_cross_entropy(logits_BC, target_B, backend=backend).dtype == torch.float32


def test_frozen_logits_and_no_grad_need_no_gradient():
    logits_BC, target_B = torch.randn(3, 5), torch.arange(3)
    assert not symmetric_cross_entropy(logits_BC, target_B).requires_grad
    with torch.no_grad():
        assert not symmetric_cross_entropy(logits_BC.requires_grad_(), target_B).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"logits_BC": torch.randn(2, 3, 4)}, r"\[2, 3, 4\]"),
        ({"logits_BC": torch.randn(2, 0)}, r"\[2, 0\]"),
        ({"logits_BC": torch.ones(2, 3, dtype=torch.int32)}, "int32"),
        ({"target_B": torch.zeros(5, dtype=torch.long)}, r"\[5\]"),
        ({"target_B": torch.zeros(2)}, "float32"),
        ({"target_B": torch.zeros(2, dtype=torch.long, device="meta")}, "meta"),
        ({"target_B": torch.tensor([0, 3])}, "label 3 of row 1"),
        ({"target_B": torch.tensor([-1, 0])}, "label -1 of row 0"),
        ({"logits_BC": [[0.0, 1.0, 2.0]]}, "logits must be a tensor, got list"),
        ({"target_B": [0, 2]}, "targets must be a tensor, got list"),
        ({"row_weight_B": [1.0, 1.0]}, "row_weight_B must be a tensor, got list"),
        ({"row_weight_B": torch.ones(3)}, r"\[3\]"),
        ({"row_weight_B": torch.ones(2, dtype=torch.long)}, "int64"),
        ({"row_weight_B": torch.ones(2, requires_grad=True)}, "detach"),
        ({"reduction": "median"}, "median"),
        ({"logits_BC": torch.full((2, 3), math.nan), "check": True}, "row 0 are NaN"),
    ),
)
@over_backends
def test_bad_input_names_what_is_wrong(change, message, backend):
    arguments = {"logits_BC": torch.randn(2, 3), "target_B": torch.tensor([0, 2]), "backend": backend}
    if backend == "triton" and "target_B" in change:
        arguments["check"] = True
    with pytest.raises(ValueError, match=message):
        symmetric_cross_entropy(**(arguments | change))


def test_ranks_of_a_data_parallel_model_get_the_gradient_of_the_whole_batch(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.Linear(4, 3)
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        x, target_B = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
        symmetric_cross_entropy(parallel(x), target_B).backward()
        ours = model.weight.grad.clone()
        model.zero_grad()
        symmetric_cross_entropy(model(x), target_B, backend="reference").backward()
        torch.testing.assert_close(ours, model.weight.grad)
    finally:
        dist.destroy_process_group()


@over_backends
@pytest.mark.parametrize("logits_dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("weight_dtype", (torch.float64, torch.float16))
def test_row_weights_of_another_dtype_weigh_the_same(backend, logits_dtype, weight_dtype):
    logits_BC = spread_logits(4, 7).to(logits_dtype)
    target_B, weight_B = torch.tensor([2, 0, 6, 4]), torch.tensor([1.0, 0.25, 3.0, 0.5])

    def loss_and_gradient(weight_B):
        leaf_BC = logits_BC.clone().requires_grad_()
        loss = symmetric_cross_entropy(leaf_BC, target_B, row_weight_B=weight_B, backend=backend)
        return loss, *torch.autograd.grad(loss, leaf_BC)

    for ours, expected in zip(loss_and_gradient(weight_B.to(weight_dtype)), loss_and_gradient(weight_B)):
        assert ours.dtype == expected.dtype and torch.equal(ours, expected)


def test_gradcheck_passes_with_an_undefined_upstream_gradient_too():
    logits_BC = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "none"):
        loss = partial(symmetric_cross_entropy, target_B=torch.arange(3), reduction=reduction)
        torch.autograd.gradcheck(loss, logits_BC)


@over_backends
def test_a_second_derivative_is_an_error_and_not_silently_zero(backend):
    logits_BC = torch.randn(3, 4, requires_grad=True)
    loss = symmetric_cross_entropy(logits_BC, torch.arange(3), backend=backend)
    (expected_BC,) = torch.autograd.grad(loss, logits_BC, retain_graph=True)
    (gradient_BC,) = torch.autograd.grad(loss, logits_BC, create_graph=True)
    assert torch.equal(gradient_BC, expected_BC)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad((gradient_BC.square().sum() + logits_BC.sum()), logits_BC)


def test_meta_tensors_give_shape_and_dtype():
    logits_BC = torch.empty(3, 5, device="meta", dtype=torch.bfloat16, requires_grad=True)
    target_B = torch.empty(3, device="meta", dtype=torch.long)
    loss = symmetric_cross_entropy(logits_BC, target_B)
    assert loss.shape == () and loss.dtype == torch.bfloat16 and loss.device.type == "meta"
