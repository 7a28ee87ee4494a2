"""The error bounds of the ops at any shape: every backend keeps them, and a wrong formula breaks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_contract import assert_keeps_the_bound, call, outputs_and_gradients, usable_backends, with_leaves

from slca_fast.kernels.gaussian_sampling.packing import pack_lower
from slca_fast.kernels.symmetric_cross_entropy import reference as symmetric
from slca_fast.ops.augment import MEAN, STD
from slca_fast.ops.lora_linear import FORMS
from slca_fast.ops.registry import Sample, all_ops

OPS = all_ops()


class Random:
    """Tensors of one dtype from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int, size: float = 1.0, requires_grad: bool = False) -> torch.Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * size
        return values.to(self.dtype).requires_grad_(requires_grad)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator)

    def integers(self, most: int, *shape: int) -> torch.Tensor:
        return torch.randint(most, shape, generator=self.generator)


random, either = st.integers(0, 10_000), st.booleans()
few_to_300, any_size = st.integers(1, 300), st.floats(0.01, 30)


@st.composite
def symmetric_rows(draw, dtype, classes=few_to_300, size=any_size):
    rows, num_classes, rng = draw(st.integers(0, 6)), draw(classes), Random(draw(random), dtype)
    logits_BC = rng.normal(rows, num_classes, size=draw(size), requires_grad=True)
    weights = draw(st.sampled_from([(1.0, 1.0), (0.5, 0.5), (1.0, 0.1)]))
    kwargs = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if draw(either):
        kwargs["row_weight_B"] = rng.uniform(rows) + 0.25
    return Sample("rows", (logits_BC, rng.integers(num_classes, rows), *weights), kwargs)


def undecided_rows(dtype):
    """No class has nearly all of the probability, where mistakes would be as small as what is left."""
    return symmetric_rows(dtype, st.integers(5, 300), st.floats(0.01, 3))


@st.composite
def weighted_rows(draw, dtype):
    sample = draw(undecided_rows(dtype))
    weight_B = torch.linspace(0.25, 3, len(sample.args[0]))
    return Sample("weighted rows", sample.args, sample.kwargs | {"row_weight_B": weight_B})


@st.composite
def confident_rows(draw, dtype):
    """The label has nearly all of the probability: every other class lies below the clamp at 1e-7."""
    rows, num_classes, rng = draw(st.integers(1, 4)), draw(st.integers(100, 400)), Random(draw(random), dtype)
    target_B = rng.integers(num_classes, rows)
    logits_BC = rng.normal(rows, num_classes, size=0.1)
    logits_BC[torch.arange(rows), target_B] = draw(st.floats(17, 18))
    return Sample("confident", (logits_BC.requires_grad_(), target_B, 1.0, 1.0), {"reduction": "sum"})


@st.composite
def task_rows(draw, dtype):
    rows, rng = draw(st.integers(0, 4)), Random(draw(random), dtype)
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    logits_BC = rng.normal(rows, sum(sizes), size=draw(st.floats(0.1, 10)), requires_grad=True)
    label_B = rng.integers(sum(sizes), rows)
    return Sample("tasks", (logits_BC, label_B, sizes, draw(st.sampled_from([0.05, 0.1, 1.0]))))


@st.composite
def features(draw, dtype):
    rng, num_rows, dim = Random(draw(random), dtype), draw(st.integers(0, 60)), draw(st.integers(1, 40))
    num_classes = draw(st.integers(1, 5))
    features_ND = rng.normal(num_rows, dim) + draw(st.sampled_from([0, 3, 50]))
    wide = {torch.float64} if dtype == torch.float64 else {torch.float32, torch.float64}
    accumulate = draw(st.sampled_from(sorted(wide, key=str)))
    args = (features_ND, rng.integers(num_classes, num_rows), num_classes)
    return Sample("features", args, {"accumulate_dtype": accumulate})


@st.composite
def covariances(draw, dtype):
    rng, batch, dim = Random(draw(random), torch.float64), draw(st.integers(1, 3)), draw(st.integers(2, 24))
    rows = rng.normal(batch, 3 * dim, dim)
    return Sample("covariances", ((rows.mT @ rows / (3 * dim)).to(dtype), draw(st.sampled_from([0.05, 0.5]))))


@st.composite
def gaussians(draw, dtype, packed=either):
    rng, batch, dim = Random(draw(random), dtype), draw(st.integers(1, 3)), draw(st.integers(2, 40))
    factor = rng.normal(batch, dim, dim).tril()
    args = (rng.normal(batch, dim, size=3), pack_lower(factor) if draw(packed) else factor, draw(st.integers(1, 5)))
    return Sample("gaussians", (*args, draw(random)))


@st.composite
def low_rank(draw, dtype, square=False):
    rng, batch, dim = Random(draw(random), dtype), draw(st.integers(1, 3)), draw(st.integers(2, 40))
    rows_CKD = rng.normal(batch, dim if square else draw(st.integers(0, 20)), dim)
    args = (rng.normal(batch, dim, size=3), rows_CKD, 0.5, draw(st.integers(1, 5)), draw(random))
    return Sample("low rank", args)


@st.composite
def layers(draw, dtype):
    rng, rows = Random(draw(random), dtype), draw(few_to_300)
    num_in, num_out, rank = draw(st.integers(1, 40)), draw(st.integers(1, 70)), draw(st.integers(1, 17))
    x = rng.normal(rows, num_in, requires_grad=True)
    weight = rng.normal(num_out, num_in, size=num_in**-0.5)
    bias = rng.normal(num_out, requires_grad=True) if draw(either) else None
    lora_A = rng.normal(rank, num_in, size=num_in**-0.5, requires_grad=True)
    args = (x, weight, bias, lora_A, rng.normal(num_out, rank, requires_grad=True), 0.5)
    return Sample("layer", args, {"form": draw(st.sampled_from(FORMS))})


@st.composite
def images(draw, dtype, flip=either):
    rng, count = Random(draw(random), dtype), draw(st.integers(1, 3))
    extents = [(draw(st.integers(4, 40)), draw(st.integers(4, 40))) for _ in range(count)]
    height_N, width_N = (torch.tensor(side, dtype=torch.int32) for side in zip(*extents))
    bytes_N = height_N.long() * width_N * 3
    clip_N4 = torch.stack([torch.zeros_like(width_N), torch.zeros_like(width_N), width_N - 1, height_N - 1], dim=1)
    plan = (
        rng.integers(256, int(bytes_N.sum())).to(torch.uint8), bytes_N.cumsum(0) - bytes_N, height_N, width_N,
        clip_N4.double(), clip_N4, torch.tensor([draw(flip) for _ in extents]), rng.uniform(count) + 0.25,
    )  # fmt: skip
    args = (*plan, draw(st.integers(2, 20)), MEAN, STD)
    return Sample("images", args, {"dtype": dtype, "channels_last": draw(either)})


ANY_SHAPE = {
    "symmetric_cross_entropy": symmetric_rows,
    "task_normalized_cross_entropy": task_rows,
    "class_moments": features,
    "cholesky_factor": covariances,
    "gaussian_sampling": gaussians,
    "low_rank_sampling": low_rank,
    "lora_linear": layers,
    "augment": images,
}


@pytest.mark.parametrize(
    ("name", "backend", "dtype"),
    [
        pytest.param(name, backend, dtype, id=f"{name}-{backend}-{str(dtype).removeprefix('torch.')}")
        for name, spec in OPS.items()
        for backend in usable_backends(spec, "cpu")
        for dtype in spec.dtypes
    ],
)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_backend_keeps_the_bound_at_any_shape(name, backend, dtype, data):
    assert_keeps_the_bound(OPS[name], call(OPS[name], backend), data.draw(ANY_SHAPE[name](dtype)), dtype)


def rewritten_symmetric(**constants: float) -> Callable[..., Any]:
    """The reference with other constants."""

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        with mock.patch.multiple(symmetric, **constants):
            return symmetric.symmetric_cross_entropy_reference(*args, **kwargs)

    return run


def without_terms_below_the_clamp(logits_BC, target_B, a, b, reduction) -> torch.Tensor:
    loss = symmetric.symmetric_cross_entropy_reference(logits_BC, target_B, a, b, reduction)
    num_floored = int((logits_BC.softmax(dim=1) < symmetric.PROBABILITY_FLOOR).sum())
    return loss - b * symmetric.REVERSE_SCALE * symmetric.PROBABILITY_FLOOR * num_floored


def of_the_other_sign(logits_BC, target_B, a, b, reduction, **kwargs) -> torch.Tensor:
    return symmetric.symmetric_cross_entropy_reference(logits_BC, target_B, a, -b, reduction, **kwargs)


def without_row_weights(*args: Any, row_weight_B: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return symmetric.symmetric_cross_entropy_reference(*args, **kwargs)


def task_normalized(z_BC, target_B, sizes, temperature, n_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    norm_BK = torch.stack([z.norm(dim=1) + 1e-7 for z in z_BC.split(sizes, dim=1)], dim=1)
    return torch.nn.functional.cross_entropy(z_BC / n_of(norm_BK) / temperature, target_B)


def no_gradient_through_n(*args: Any) -> torch.Tensor:
    return task_normalized(*args, lambda norm_BK: norm_BK.mean(dim=1, keepdim=True).detach())


def sum_of_norms(*args: Any) -> torch.Tensor:
    return task_normalized(*args, lambda norm_BK: norm_BK.sum(dim=1, keepdim=True))


def norm_of_the_whole_row(*args: Any) -> torch.Tensor:
    return task_normalized(*args, lambda norm_BK: norm_BK.square().sum(dim=1, keepdim=True).sqrt())


def without_temperature(z_BC, target_B, sizes, temperature) -> torch.Tensor:
    return OPS["task_normalized_cross_entropy"].reference(z_BC, target_B, sizes, 1.0)


def moments(features_ND, labels_N, num_classes, accumulate_dtype, change) -> list[torch.Tensor]:
    reference = OPS["class_moments"].reference
    count_C, mean_CD, scatter_CDD = reference(features_ND, labels_N, num_classes, accumulate_dtype)
    return change(count_C, mean_CD, scatter_CDD)


def mean_by_one_row_less(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
    ratio = lambda n: n / (n - 1).clamp(min=1)  # noqa: E731
    return moments(*args, **kwargs, change=lambda n, mean, scatter: [n, mean * ratio(n)[:, None], scatter])


def covariance_in_place_of_scatter(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
    divided = lambda n, scatter: scatter / (n - 1).clamp(min=1)[:, None, None]  # noqa: E731
    return moments(*args, **kwargs, change=lambda n, mean, scatter: [n, mean, divided(n, scatter)])


def uncentred_scatter(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
    def change(n, mean, scatter):
        return [n, mean, scatter + n[:, None, None] * mean[:, :, None] * mean[:, None]]

    return moments(*args, **kwargs, change=change)


def without_ridge(covariance_CDD, ridge) -> Any:
    return OPS["cholesky_factor"].reference(covariance_CDD, 0.0)


def upper_factor(covariance_CDD, ridge) -> Any:
    factor_CDD, added_C = OPS["cholesky_factor"].reference(covariance_CDD, ridge)
    return factor_CDD.mT, added_C


def samples_without_mean(mean_CD, *args: Any) -> torch.Tensor:
    return OPS["gaussian_sampling"].reference(torch.zeros_like(mean_CD), *args)


def samples_of_the_transpose(mean_CD, factor, num_per_class, seed) -> torch.Tensor:
    unit = OPS["gaussian_sampling"].reference(
        torch.zeros_like(mean_CD), torch.eye(mean_CD.shape[1]).to(factor).expand_as(factor), num_per_class, seed
    )
    return mean_CD[:, None] + unit @ factor


def samples_of_another_seed(mean_CD, factor, num_per_class, seed) -> torch.Tensor:
    return OPS["gaussian_sampling"].reference(mean_CD, factor, num_per_class, seed + 1)


def low_rank_without_mean(mean_CD, *args: Any) -> torch.Tensor:
    return OPS["low_rank_sampling"].reference(torch.zeros_like(mean_CD), *args)


def low_rank_without_noise(mean_CD, rows_CKD, noise_scale, *args: Any) -> torch.Tensor:
    return OPS["low_rank_sampling"].reference(mean_CD, rows_CKD, 0.0, *args)


def low_rank_of_the_transpose(mean_CD, rows_CKD, *args: Any) -> torch.Tensor:
    return OPS["low_rank_sampling"].reference(mean_CD, rows_CKD.mT, *args)


def layer_without_scale(x, weight, bias, lora_A, lora_B, scale, form) -> torch.Tensor:
    return OPS["lora_linear"].reference(x, weight, bias, lora_A, lora_B, 1.0, form)


def gradient_of_B_without_scale(x, weight, bias, lora_A, lora_B, scale, form) -> torch.Tensor:
    lora_B.register_hook(lambda gradient: gradient / scale)
    return OPS["lora_linear"].reference(x, weight, bias, lora_A, lora_B, scale, form)


def gradient_of_x_without_lora(x, weight, bias, lora_A, lora_B, scale, form) -> torch.Tensor:
    reference = OPS["lora_linear"].reference
    y = reference(x, weight, bias, lora_A, lora_B, scale, form)
    only_lora = reference(x, torch.zeros_like(weight), None, lora_A.detach(), lora_B.detach(), scale, form)
    return y - only_lora + only_lora.detach()


def changed_plan(**changes: Callable[[Any], Any]) -> Callable[..., torch.Tensor]:
    """The reference on a plan changed at the positions named."""
    position = {"box": 4, "clip": 5, "flip": 6, "brightness": 7, "mean": 9, "std": 10}

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        changed = list(args)
        for name, change in changes.items():
            changed[position[name]] = change(changed[position[name]])
        return OPS["augment"].reference(*changed, **kwargs)

    return run


flipped = st.just(True)
WRONG = {
    "symmetric_cross_entropy": {
        "no clamp of the probabilities": (confident_rows, rewritten_symmetric(PROBABILITY_FLOOR=0.0)),
        "no terms below the clamp": (confident_rows, without_terms_below_the_clamp),
        "another clamp of the labels": (confident_rows, rewritten_symmetric(LABEL_FLOOR=1e-3)),
        "sign of the reverse part": (undecided_rows, of_the_other_sign),
        "no row weights": (weighted_rows, without_row_weights),
    },
    "task_normalized_cross_entropy": {
        "no gradient through n": (task_rows, no_gradient_through_n),
        "sum of norms": (task_rows, sum_of_norms),
        "norm of the whole row": (task_rows, norm_of_the_whole_row),
        "no temperature": (task_rows, without_temperature),
    },
    "class_moments": {
        "mean over n - 1": (features, mean_by_one_row_less),
        "scatter over n - 1": (features, covariance_in_place_of_scatter),
        "not centred": (features, uncentred_scatter),
    },
    "cholesky_factor": {"no ridge": (covariances, without_ridge), "upper": (covariances, upper_factor)},
    "gaussian_sampling": {
        "no mean": (gaussians, samples_without_mean),
        "transposed factor": (lambda dtype: gaussians(dtype, packed=st.just(False)), samples_of_the_transpose),
        "another seed": (gaussians, samples_of_another_seed),
    },
    "low_rank_sampling": {
        "no mean": (low_rank, low_rank_without_mean),
        "no noise": (low_rank, low_rank_without_noise),
        "transposed rows": (lambda dtype: low_rank(dtype, square=True), low_rank_of_the_transpose),
    },
    "lora_linear": {
        "no scale": (layers, layer_without_scale),
        "no scale in the gradient of B": (layers, gradient_of_B_without_scale),
        "no LoRA in the gradient of x": (layers, gradient_of_x_without_lora),
    },
    "augment": {
        "box off by one": (images, changed_plan(box=lambda box_N4: box_N4 + 1, clip=lambda clip_N4: clip_N4 + 1)),
        "no flip": (lambda dtype: images(dtype, flip=flipped), changed_plan(flip=torch.zeros_like)),
        "no brightness": (images, changed_plan(brightness=torch.ones_like)),
        "no mean": (images, changed_plan(mean=lambda mean: (0.0,) * 3)),
        "no std": (images, changed_plan(std=lambda std: (1.0,) * 3)),
    },
}


def test_every_op_has_wrong_formulas():
    assert set(WRONG) == set(ANY_SHAPE) == set(OPS)


def largest_change(name: str, wrong: Callable[..., Any], sample: Sample) -> float:
    """How much the mistake changes an output or a gradient in exact arithmetic, relative to its largest element."""
    truth, changed = (
        [*outputs, *gradients]
        for outputs, gradients in (
            outputs_and_gradients(function, *with_leaves(sample, torch.float64))
            for function in (OPS[name].reference, wrong)
        )
    )
    changes = [(b - a).abs().max() / a.abs().max() for a, b in zip(truth, changed) if a.numel() and a.any()]
    return max(map(float, changes), default=0.0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize(
    ("name", "mistake"),
    [pytest.param(name, mistake, id=f"{name}-{mistake}") for name in WRONG for mistake in WRONG[name]],
)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_wrong_formula_breaks_the_bound(name, mistake, dtype, data):
    if dtype not in OPS[name].dtypes:
        pytest.skip(f"{name} does not take {dtype}")
    strategy, wrong = WRONG[name][mistake]
    sample = data.draw(strategy(dtype))
    # One row in a class, one class in a task: there the mistake is none.
    assume(largest_change(name, wrong, sample) > 1e-2)
    assert_keeps_the_bound(OPS[name], OPS[name].reference, sample, dtype)
    with pytest.raises(AssertionError, match=r"error .*, allowed"):
        assert_keeps_the_bound(OPS[name], wrong, sample, dtype)
