"""The hand-written alignment step against autograd and torch.optim.SGD; its CUDA graph against the CPU."""

from __future__ import annotations

import pytest
import torch

from slca_fast.methods.alignment_steps import AlignmentSteps
from slca_fast.ops.task_normalized_cross_entropy import task_normalized_cross_entropy

SIZES, DIM, BATCH = (3, 1, 2), 8, 5


def inputs(num_epochs: int = 3, num_samples: int = 17):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, DIM, generator=generator), torch.randn(6, generator=generator)
    epochs = [
        (torch.randn(num_samples, DIM, generator=generator), torch.randint(6, (num_samples,), generator=generator))
        for _ in range(num_epochs)
    ]
    return weight, bias, epochs, (0.05, 0.03, 0.01)


def by_hand(device: str) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    weight, bias, epochs, rates = inputs()
    steps = AlignmentSteps(
        weight.to(device),
        bias.to(device),
        SIZES,
        momentum=0.9,
        weight_decay=5e-4,
        temperature=0.1,
        batch_size=BATCH,
    )
    losses = [steps.run_epoch(x.to(device), y.to(device), lr) for (x, y), lr in zip(epochs, rates)]
    return steps.weight_CD.cpu(), steps.bias_C.cpu(), losses


def test_steps_are_torchs_sgd_on_autograds_gradient() -> None:
    weight, bias, epochs, rates = inputs()
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9, weight_decay=5e-4)
    expected_losses = []
    for (features, labels), lr in zip(epochs, rates):
        optimizer.param_groups[0]["lr"], losses = lr, []
        for x, y in zip(features.double().split(BATCH), labels.split(BATCH)):
            loss = task_normalized_cross_entropy(x @ weight.T + bias, y, SIZES, 0.1, backend="reference")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        expected_losses.append(sum(losses) / len(losses))
    ours = by_hand("cpu")
    torch.testing.assert_close(ours[0].double(), weight.detach(), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(ours[1].double(), bias.detach(), rtol=2e-5, atol=2e-5)
    assert ours[2] == pytest.approx(expected_losses, rel=1e-5)


@pytest.mark.gpu
def test_the_replayed_graph_is_the_cpus_alignment() -> None:
    on_cpu, on_gpu = by_hand("cpu"), by_hand("cuda")
    torch.testing.assert_close(on_gpu[0], on_cpu[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(on_gpu[1], on_cpu[1], rtol=1e-4, atol=1e-4)
    assert on_gpu[2] == pytest.approx(on_cpu[2], rel=1e-4)
