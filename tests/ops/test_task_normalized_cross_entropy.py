"""Task-normalized cross-entropy against the definition itself, any task sizes, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from op_contract import usable_backends

from slca_fast.ops.registry import REGISTRY
from slca_fast.ops.task_normalized_cross_entropy import task_normalized_cross_entropy

BACKENDS = usable_backends(REGISTRY["task_normalized_cross_entropy"], "cpu")
over_backends = pytest.mark.parametrize("backend", BACKENDS)


def defined_loss(logits: list[float], label: int, sizes: list[int], temperature: float) -> float:
    norms, start = [], 0
    for size in sizes:
        norms.append(math.sqrt(sum(z * z for z in logits[start : start + size])) + 1e-7)
        start += size
    n = sum(norms) / len(norms)
    u = [z / n / temperature for z in logits]
    return max(u) + math.log(sum(math.exp(v - max(u)) for v in u)) - u[label]


def test_value_and_gradient_follow_the_definition():
    sizes = [3, 1, 4]
    logits_BC = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    target_B = torch.tensor([0, 3, 7])
    loss = task_normalized_cross_entropy(logits_BC, target_B, sizes, 0.1)
    expected = sum(defined_loss(z, y, sizes, 0.1) for z, y in zip(logits_BC.tolist(), target_B.tolist())) / 3
    assert abs(loss.item() - expected) < 1e-12
    (gradient_BC,) = torch.autograd.grad(loss, logits_BC)
    step = 1e-4
    for row in range(3):
        for column in range(8):
            values = []
            for h in (-2 * step, -step, step, 2 * step):
                moved = logits_BC[row].tolist()
                moved[column] += h
                values.append(defined_loss(moved, int(target_B[row]), sizes, 0.1))
            difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step) / 3
            assert abs(gradient_BC[row, column].item() - difference) < 1e-8


@over_backends
def test_gradient_is_orthogonal_to_a_common_scale(backend):
    """Scaling all logits leaves z / n as it is (up to the 1e-7), so the gradient has no part along z."""
    logits_BC = torch.randn(4, 30, requires_grad=True)
    loss = task_normalized_cross_entropy(logits_BC, torch.arange(4), [10, 15, 5], backend=backend)
    (gradient,) = torch.autograd.grad(loss, logits_BC)
    assert (gradient * logits_BC).sum(dim=1).abs().max() < 2e-5
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"task_sizes": [1, 1]}, r"\[1, 1\] \(sum 2\)"),
        ({"task_sizes": [3, 0]}, r"\[3, 0\]"),
        ({"task_sizes": []}, r"\[\]"),
        ({"temperature": 0.0}, "0.0"),
        ({"target_B": torch.tensor([0, 3])}, "label 3 of row 1"),
        ({"target_B": torch.zeros(3, dtype=torch.long)}, r"\[3\]"),
        ({"logits_BC": torch.full((2, 3), math.nan), "check": True}, "row 0 are NaN"),
    ),
)
@over_backends
def test_bad_input_names_what_is_wrong(change, message, backend):
    arguments = {
        "logits_BC": torch.randn(2, 3), "target_B": torch.tensor([0, 2]), "task_sizes": [2, 1], "backend": backend
    }  # fmt: skip
    if backend == "triton" and "target_B" in change:
        arguments["check"] = True
    with pytest.raises(ValueError, match=message):
        task_normalized_cross_entropy(**(arguments | change))
