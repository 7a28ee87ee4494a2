"""Class moments against numpy in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_truth import conditioned_features, relative_error

from slca_fast.ops.class_moments import Moments, class_moments, merge_moments


def numpy_moments(features_ND, labels_N, num_classes):
    x, y = features_ND.double().numpy(), labels_N.numpy()
    dim = x.shape[1]
    count, mean, scatter = np.zeros(num_classes, int), np.zeros((num_classes, dim)), np.zeros((num_classes, dim, dim))
    for c in range(num_classes):
        rows = x[y == c]
        count[c] = len(rows)
        if len(rows):
            mean[c] = rows.mean(0)
        if len(rows) > 1:
            scatter[c] = np.cov(rows.T).reshape(dim, dim) * (len(rows) - 1)
    return count, mean, scatter


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(0, 40), dim=st.integers(1, 12), num_classes=st.integers(1, 9), seed=st.integers(0, 999))
def test_matches_numpy(num_rows, dim, num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, dim, generator=generator) * 2 + 10
    labels = torch.randint(0, num_classes, (num_rows,), generator=generator)
    truth = numpy_moments(features, labels, num_classes)
    ours = class_moments(features, labels, num_classes)
    assert ours.count_C.tolist() == truth[0].tolist() and ours.count_C.dtype == torch.int64
    np.testing.assert_allclose(ours.mean_CD.numpy(), truth[1], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(ours.scatter_CDD.numpy(), truth[2], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_covariance_error_at_condition_1e6(dtype, bound):
    features = torch.cat([conditioned_features(120, 768, 1e6, seed) for seed in range(2)])
    labels = torch.arange(2).repeat_interleave(120)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(1))
    features, labels = features[order].to(dtype), labels[order]
    scatter = class_moments(features, labels, 2, accumulate_dtype=dtype).scatter_CDD
    for c in range(2):
        truth = np.cov(features[labels == c].double().numpy().T)
        assert relative_error(scatter[c] / 119, truth) <= bound


def test_a_large_mean_costs_no_accuracy_in_float32():
    features = (torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) + 1000).float()
    labels = torch.zeros(200, dtype=torch.int64)
    scatter = class_moments(features, labels, 1, accumulate_dtype=torch.float32).scatter_CDD[0]
    assert relative_error(scatter, np.cov(features.double().numpy().T) * 199) <= 1e-6


def test_very_unequal_classes():
    sizes = [0, 1, 700, 2, 0, 33]
    labels = torch.arange(6).repeat_interleave(torch.tensor(sizes))[torch.randperm(sum(sizes))]
    features = torch.randn(sum(sizes), 24)
    ours = class_moments(features, labels, 6)
    assert ours.count_C.tolist() == sizes
    np.testing.assert_allclose(ours.scatter_CDD.numpy(), numpy_moments(features, labels, 6)[2], atol=1e-10)
    assert not ours.scatter_CDD[[0, 1, 4]].any()


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99))
def test_merging_chunks_is_measuring_the_whole(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(60, 7, generator=generator, dtype=torch.float64) - 4
    labels = torch.randint(0, 5, (60,), generator=generator)
    edges = [0, *sorted(cuts), 60]
    merged = class_moments(features[:0], labels[:0], 5)
    for start, end in itertools.pairwise(edges):
        merged = merge_moments(merged, class_moments(features[start:end], labels[start:end], 5))
    whole = class_moments(features, labels, 5)
    assert isinstance(merged, Moments) and torch.equal(merged.count_C, whole.count_C)
    torch.testing.assert_close(merged.mean_CD, whole.mean_CD, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.scatter_CDD, whole.scatter_CDD, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_ND": torch.zeros(4)}, "floating-point matrix"),
        ({"features_ND": torch.zeros(4, 3, dtype=torch.int64)}, "torch.int64"),
        ({"labels_N": torch.zeros(5, dtype=torch.int64)}, r"\(4,\).*\(5,\)"),
        ({"labels_N": torch.zeros(4)}, "integers"),
        ({"labels_N": torch.tensor([0, 1, 2, 1])}, "got 2"),
        ({"labels_N": torch.tensor([0, 1, -1, 1])}, "got -1"),
        ({"num_classes": -1}, "-1"),
        ({"accumulate_dtype": torch.bfloat16}, "bfloat16"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"features_ND": torch.zeros(4, 3), "labels_N": torch.tensor([0, 1, 0, 1]), "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        class_moments(**arguments | change)


def test_unchecked_labels_out_of_range_are_left_out():
    features, labels = torch.randn(6, 3), torch.tensor([0, -1, 1, 1, 7, 0])
    ours = class_moments(features, labels, 2, check=False)
    kept = (labels >= 0) & (labels < 2)
    torch.testing.assert_close(ours, class_moments(features[kept], labels[kept], 2))


@pytest.mark.parametrize("num_classes", (128, 256, 300))
@pytest.mark.parametrize("dtype", (torch.uint8, torch.int8, torch.int16), ids=str)
def test_narrow_labels_count_like_wide_ones(dtype, num_classes):
    labels = torch.arange(min(num_classes, torch.iinfo(dtype).max + 1)).repeat(2)
    features = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    ours = class_moments(features, labels.to(dtype), num_classes)
    for narrow, wide in zip(ours, class_moments(features, labels, num_classes)):
        assert torch.equal(narrow, wide)
    assert int(ours.count_C.sum()) == len(labels)
