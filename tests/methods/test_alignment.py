"""Alignment: sample scaling by true task boundaries, the whole stage against a plain re-derivation, purity."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from slca_fast.config import AlignConfig
from slca_fast.methods.age_scaling import old_task_shrink, task_age
from slca_fast.methods.alignment import align, align_classifier
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.head import LinearClassifier

SIZES, DIM = (3, 1, 2), 4


def gaussians() -> ClassGaussians:
    torch.manual_seed(0)
    made = ClassGaussians(DIM)
    labels = torch.arange(6).repeat_interleave(20)
    made.update(torch.randn(120, DIM, dtype=torch.float64) + labels[:, None], labels)
    return made


def classifier() -> LinearClassifier:
    torch.manual_seed(1)
    return LinearClassifier(0.1 * torch.randn(6, DIM), torch.zeros(6), SIZES)


def test_age_counts_tasks_since_a_classs_own_with_unequal_tasks() -> None:
    assert task_age(SIZES).tolist() == [2, 2, 2, 1, 0, 0]
    # Cars-196: the official c // (size of the last task) would put class 190 in task 11 of 10.
    assert task_age((20,) * 9 + (16,))[190] == 0


def test_shrink_lies_in_the_papers_interval_and_leaves_the_current_task() -> None:
    age = torch.tensor([0.0, 1.0, 5.0]).repeat_interleave(10_000)
    shrink = old_task_shrink(age, 0.02, torch.Generator().manual_seed(0)).view(3, -1)
    assert (shrink[0] == 1).all()
    for row, years in ((shrink[1], 1), (shrink[2], 5)):
        assert row.min() >= 1 / (1 + 0.03 * years) - 1e-6 and row.max() <= 1 / (1 + 0.01 * years) + 1e-6
        mean_r = ((1 / row - 1) / years).mean().item()
        assert mean_r == pytest.approx(0.02, abs=4 * 0.02 / math.sqrt(12 * 10_000))


def test_mean_scaling_is_slcas_formula_by_true_tasks() -> None:
    seen = {}

    class Recorder(ClassGaussians):
        def sample(self, num_per_class, generator=None, mean_scale_C=None, **kwargs):
            seen["scale"] = mean_scale_C
            return super().sample(num_per_class, generator, mean_scale_C, **kwargs)

    recorder = Recorder(DIM)
    labels = torch.arange(6).repeat_interleave(20)
    recorder.update(torch.randn(120, DIM), labels)
    head = classifier()
    align_classifier(head.weight_CD, head.bias_C, recorder, SIZES, epochs=1, samples_per_class=4, mean_scaling=True)
    # 0.9 + 0.1 (t_c + 1) / (t + 1) with t = 2.
    expected = [0.9 + 0.1 / 3] * 3 + [0.9 + 0.2 / 3] + [1.0] * 2
    assert seen["scale"].tolist() == pytest.approx(expected, rel=1e-6)


def plain_alignment(samples, weight, bias, *, lr, momentum, weight_decay, temperature, epochs):
    """Stage 2 as the method states it: autograd, explicit SGD, explicit norms; float64."""
    weight, bias = weight.double().clone(), bias.double().clone()
    buffers = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for features, target in samples[epoch]:
            parameters = [weight.requires_grad_(), bias.requires_grad_()]
            logits = features.double() @ weight.T + bias
            norms = [part.norm(dim=1, keepdim=True) + 1e-7 for part in logits.split(SIZES, dim=1)]
            mean_norm = torch.cat(norms, 1).mean(1, keepdim=True)
            loss = F.cross_entropy(logits / mean_norm / temperature, target)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient, buffer in zip(parameters, gradients, buffers):
                    buffer.mul_(momentum).add_(gradient + weight_decay * parameter)
                    parameter -= rate * buffer
            weight, bias = weight.detach(), bias.detach()
    return weight, bias


def test_the_whole_stage_equals_a_plain_float64_derivation() -> None:
    model, head, n, mu = gaussians(), classifier(), 16, 0.02
    torch.manual_seed(3)
    generator, again = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    weight, bias = align_classifier(
        head.weight_CD,
        head.bias_C,
        model,
        SIZES,
        epochs=3,
        samples_per_class=n,
        lr=0.05,
        weight_decay=5e-4,
        temperature=0.1,
        feature_scale=mu,
        generator=generator,
    )
    samples = []
    age = torch.tensor(task_age(SIZES)).repeat_interleave(n)
    for _ in range(3):
        features, labels = model.sample(n, generator=again)
        r = mu + 0.01 * (2 * torch.rand(len(age), generator=again) - 1)
        features = features / (1 + r * age)[:, None]
        order = torch.randperm(len(labels), generator=again)
        samples.append(list(zip(features[order].split(n), labels[order].split(n))))
    expected = plain_alignment(
        samples, head.weight_CD, head.bias_C, lr=0.05, momentum=0.9, weight_decay=5e-4, temperature=0.1, epochs=3
    )
    assert all(len(epoch) == 6 for epoch in samples), "as many steps as classes"
    torch.testing.assert_close(weight, expected[0].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, expected[1].float(), rtol=1e-4, atol=1e-5)


def test_alignment_returns_a_copy_and_folds_the_inference_scales() -> None:
    head, config = classifier(), AlignConfig(epochs=2, samples_per_class=8, feature_scale=0.02, mean_scaling=False)
    before = head.weight_CD.clone(), head.bias_C.clone()
    losses = []
    aligned = align(head, gaussians(), config, 0.0, seed=5, on_epoch=lambda epoch, loss: losses.append(loss))
    assert torch.equal(head.weight_CD, before[0]) and torch.equal(head.bias_C, before[1])
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    weight, _ = align_classifier(
        head.weight_CD,
        head.bias_C,
        gaussians(),
        SIZES,
        epochs=2,
        samples_per_class=8,
        feature_scale=0.02,
        generator=torch.Generator().manual_seed((5 << 20) + (1 << 16) + 2),
    )
    scale = torch.tensor([1.04] * 3 + [1.02] + [1.0] * 2)
    torch.testing.assert_close(aligned.weight_CD, weight * scale[:, None])


def test_first_task_and_zero_epochs_change_nothing() -> None:
    head = classifier()
    assert align(head, gaussians(), AlignConfig(epochs=0), 0.0, seed=0) is head
    single = LinearClassifier(head.weight_CD, head.bias_C, (6,))
    assert align(single, gaussians(), AlignConfig(), 0.0, seed=0) is single


def test_alignment_moves_a_bad_classifier_to_good_accuracy() -> None:
    torch.manual_seed(0)
    made = ClassGaussians(8)
    means = 5 * torch.eye(6, 8)
    labels = torch.arange(6).repeat_interleave(50)
    features = means[labels] + torch.randn(300, 8)
    made.update(features, labels)
    # The current task's heads drown the old ones, as after sequential fine-tuning.
    weight = torch.cat([0.01 * means[:4], 2 * means[4:]])
    bias = torch.tensor([0.0] * 4 + [20.0] * 2)

    def accuracy(w, b):
        return ((features @ w.T + b).argmax(1) == labels).float().mean().item()

    assert accuracy(weight, bias) < 0.5
    aligned = align_classifier(
        weight, bias, made, (2, 2, 2), epochs=20, lr=0.1, generator=torch.Generator().manual_seed(0)
    )
    assert accuracy(*aligned) > 0.95


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task_sizes": (3, 3, 3)}, "sum to 9 but weight has 6"),
        ({"task_sizes": (6, 0)}, r"numbers >= 1, got \[6, 0\]"),
        ({"task_sizes": (7, -1)}, r"numbers >= 1, got \[7, -1\]"),
        ({"bias_C": None}, r"bias must be a floating-point tensor \[6\], got NoneType"),
        ({"bias_C": torch.zeros(5)}, r"tensor \[6\], got torch.float32 \[5\]"),
        ({"weight_CD": torch.zeros(6)}, r"weight must be .*\[6\]"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"samples_per_class": 0}, "samples_per_class must be >= 1, got 0"),
        ({"epochs": -1}, "epochs must be >= 0, got -1"),
        ({"feature_scale": -0.1}, "feature_scale must be >= 0"),
        ({"feature_scale": 1e300}, "feature_scale must be at most 1e.06, got 1e.300"),
        ({"lr": math.nan}, "lr must be >= 0, got nan"),
        ({"lr": -0.1}, "lr must be >= 0, got -0.1"),
        ({"lr": math.inf}, "lr must be at most"),
        ({"momentum": 2.0}, "momentum must be below 1, got 2.0"),
        ({"momentum": math.nan}, "momentum must be >= 0"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"temperature": math.inf}, "temperature must be at most 1e.06, got inf"),
        ({"temperature": 1e-300}, "temperature must be positive, got 1e-300"),
        ({"feature_scale": 0.02, "mean_scaling": True}, "exclude each other"),
        ({"gaussians": ClassGaussians(5)}, "width 5 but weight has 4"),
        ({"gaussians": ClassGaussians(4)}, "Gaussians for 0 classes"),
    ],
)
def test_what_does_not_fit_is_refused(change, message) -> None:
    head = classifier()
    given = {"weight_CD": head.weight_CD, "bias_C": head.bias_C, "gaussians": gaussians(), "task_sizes": SIZES}
    with pytest.raises(ValueError, match=message):
        align_classifier(**{**given, **change})


def aligned_with_seed(weight, bias, **settings):
    generator = settings.pop("generator", None) or torch.Generator().manual_seed(4)
    settings = {"epochs": 2, "samples_per_class": 8, "feature_scale": 0.02, **settings}
    return align_classifier(weight, bias, gaussians(), SIZES, generator=generator, **settings)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64))
def test_the_result_has_the_callers_dtype(dtype) -> None:
    head = classifier()
    start = head.weight_CD.to(dtype), head.bias_C.to(dtype)
    ours = aligned_with_seed(*start)
    for value, expected in zip(ours, aligned_with_seed(*(t.float() for t in start))):
        assert value.dtype == dtype and torch.equal(value, expected.to(dtype))


def test_folding_scales_each_head_by_its_age_and_leaves_the_bias() -> None:
    head = classifier()
    plain, folded = (aligned_with_seed(head.weight_CD, head.bias_C, fold=fold) for fold in (False, True))
    scale = torch.tensor([1.04] * 3 + [1.02] + [1.0] * 2)
    torch.testing.assert_close(folded[0], plain[0] * scale[:, None])
    assert torch.equal(folded[1], plain[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_a_generator_on_the_gpu_draws_the_same_every_time(device) -> None:
    head = classifier()
    start = head.weight_CD.to(device), head.bias_C.to(device)
    first, second = (aligned_with_seed(*start, generator=torch.Generator("cuda").manual_seed(4)) for _ in range(2))
    assert first[0].device.type == device
    torch.testing.assert_close(first, second)
