"""Factors with a ladder of ridge, and counter-based samples, against their equations and statistics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_truth import spread_of

from slca_fast.kernels.gaussian_sampling import packing
from slca_fast.kernels.gaussian_sampling.philox import philox_normal_reference, philox_words
from slca_fast.ops.gaussian_sampling import cholesky_factor, sample_gaussians, sample_low_rank


def covariance(dim, num_rows, seed=0, dtype=torch.float64):
    rows = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    rows = rows - rows.mean(0)
    return rows.mT @ rows / max(num_rows - 1, 1)


@given(dim=st.integers(1, 33), batch=st.integers(0, 3))
@settings(deadline=None)
def test_packing_keeps_every_number(dim, batch):
    lower = torch.randn(batch, dim, dim).tril()
    packed = packing.pack_lower(lower)
    assert packed[:1].numel() in (0, dim * (dim + 1) // 2) and packing.packed_dim(packed) == dim
    assert torch.equal(packing.unpack_lower(packed), lower)
    symmetric = lower + lower.tril(-1).mT
    assert torch.equal(packing.unpack_symmetric(packing.pack_lower(symmetric)), symmetric)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(word, expected):
    """Known answers of Philox 4x32-10 with all-zero and all-one counter and key."""
    counter = torch.tensor([word])
    seed = torch.tensor([0 if word == 0 else -1])
    assert tuple(int(w) for w in philox_words((counter, counter, counter, word), seed)) == expected


def test_normals_are_normal():
    normal = philox_normal_reference(torch.tensor([42]), torch.arange(8), 256, 130).double()
    flat = normal.flatten().numpy()
    count = flat.size
    assert scipy.stats.kstest(flat, "norm").pvalue > 1e-3
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = np.std(flat**power) / np.sqrt(count)
        assert abs(np.mean(flat**power) - moment) < 4.5 * spread
    rows = normal.flatten(0, 1).numpy()
    correlation = np.corrcoef(rows.T)[np.triu_indices(130, 1)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(len(rows))
    streams = philox_normal_reference(torch.tensor([42]), torch.arange(8), 256, 130, stream=1).double()
    assert abs(np.corrcoef(flat, streams.flatten().numpy())[0, 1]) < 5 / np.sqrt(count)


@given(
    num_samples=st.integers(1, 20),
    num_dims=st.integers(1, 13),
    cut=st.integers(0, 20),
    seed=st.integers(-(2**63), 2**63 - 1),
)
@settings(max_examples=30, deadline=None)
def test_normals_do_not_depend_on_the_split(num_samples, num_dims, cut, seed):
    key, classes = torch.tensor([seed]), torch.tensor([5, 0, 3])
    cut = min(cut, num_samples)
    whole = philox_normal_reference(key, classes, num_samples, num_dims)
    first = philox_normal_reference(key, classes, cut, num_dims)
    second = philox_normal_reference(key, classes, num_samples - cut, num_dims, sample_offset=cut)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(philox_normal_reference(key, classes[1:2], num_samples, num_dims), whole[1:2])
    assert torch.equal(philox_normal_reference(key, classes, num_samples, num_dims + 6)[..., :num_dims], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_rows", [1, 2, 40, 64, 300])
def test_factor_times_its_transpose_is_the_matrix(num_rows, dtype):
    matrix = torch.stack([covariance(64, num_rows, seed) for seed in range(3)]).to(dtype)
    factor, added = cholesky_factor(matrix, 1e-4)
    assert not added.any() and torch.equal(factor, factor.tril())
    target = matrix.double() + 1e-4 * torch.eye(64, dtype=torch.float64)
    error = (factor.double() @ factor.double().mT - target).abs().max()
    assert error <= 64 * torch.finfo(dtype).eps * target.abs().max()


def test_constants_duplicates_and_zero_factor_without_extra_ridge():
    duplicates = covariance(32, 2).expand(1, -1, -1)
    matrices = torch.cat([torch.zeros(2, 32, 32, dtype=torch.float64), duplicates])
    factor, added = cholesky_factor(matrices, 1e-4)
    assert factor.isfinite().all() and not added.any()
    torch.testing.assert_close(factor[0], 1e-2 * torch.eye(32, dtype=torch.float64))


def test_only_failing_matrices_climb_the_ladder():
    good = covariance(16, 100)
    bad = good - 0.05 * good.diagonal().mean() * torch.eye(16) - torch.linalg.eigvalsh(good)[0] * torch.eye(16)
    matrices = torch.stack([good, bad, good, torch.full((16, 16), torch.nan, dtype=torch.float64)])
    factor, added = cholesky_factor(matrices, 0.0)
    assert torch.equal(factor[0], torch.linalg.cholesky(good)) and torch.equal(factor[2], factor[0])
    assert added[0] == added[2] == 0
    rung = added[1] / bad.diagonal().mean()
    assert torch.isclose(rung, torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(factor[1] @ factor[1].mT, bad + added[1] * torch.eye(16))
    assert added[3].isnan() and factor[3].isnan().any()


def test_a_singular_matrix_without_ridge_gets_a_little():
    factor, added = cholesky_factor(covariance(24, 6)[None], 0.0)
    assert factor.isfinite().all() and 0 < added[0] <= 1e-7


@pytest.mark.parametrize("form", ["full", "packed", "low_rank"])
def test_samples_have_the_mean_and_covariance(form):
    dim, num_rows, num_samples = 24, 10, 20_000
    rows = torch.randn(2, num_rows, dim, generator=torch.Generator().manual_seed(1)) / 3
    target = (rows.mT @ rows + 0.04 * torch.eye(dim)).double()
    mean = torch.arange(2 * dim).reshape(2, dim).float() / 7
    if form == "low_rank":
        samples = sample_low_rank(mean, rows, 0.2, num_samples, seed=3)
    else:
        factor = cholesky_factor(target, 0.0)[0].float()
        samples = sample_gaussians(mean, factor if form == "full" else packing.pack_lower(factor), num_samples, seed=3)
    assert samples.shape == (2, num_samples, dim) and samples.dtype == torch.float32
    for c in range(2):
        radius, mean_p, z_score = spread_of(samples[c], mean[c].double(), target[c])
        assert radius > 1e-3 and mean_p > 1e-3 and abs(z_score) < 4


@pytest.mark.parametrize("dim", [1, 2, 5, 8])
def test_packed_and_full_factors_draw_the_same(dim):
    factor = cholesky_factor(covariance(dim, 30)[None].expand(3, -1, -1), 1e-4)[0]
    mean = torch.randn(3, dim, dtype=torch.float64)
    full = sample_gaussians(mean, factor, 6, seed=9)
    garbage_above = factor + torch.full((dim, dim), 7.0, dtype=torch.float64).triu(1)
    torch.testing.assert_close(sample_gaussians(mean, packing.pack_lower(factor), 6, seed=9), full)
    torch.testing.assert_close(sample_gaussians(mean, garbage_above, 6, seed=9), full)


def test_seed_may_be_a_tensor_or_any_64_bits():
    mean, factor = torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)
    for seed in (0, 1, -1, 2**63 - 1, 2**64 - 1):
        signed = seed - 2**64 if seed >= 2**63 else seed
        assert torch.equal(
            sample_gaussians(mean, factor, 4, seed), sample_gaussians(mean, factor, 4, torch.tensor([signed]))
        )
    with pytest.raises(ValueError, match="64 bits"):
        sample_gaussians(mean, factor, 4, 2**64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cholesky_factor(torch.zeros(3, 2, 1)), r"\(3, 2, 1\)"),
        (lambda: cholesky_factor(torch.zeros(1, 2, 2, dtype=torch.bfloat16)), "bfloat16"),
        (lambda: cholesky_factor(torch.zeros(1, 2, 2), -1.0), "-1.0"),
        (lambda: cholesky_factor(torch.zeros(1, 2, 2), float("nan")), "nan"),
        (lambda: sample_gaussians(torch.zeros(2, 4), torch.zeros(2, 4, 3), 1), r"\(2, 4, 3\)"),
        (lambda: sample_gaussians(torch.zeros(2, 4), torch.zeros(3, 4, 4), 1), "2 classes"),
        (lambda: sample_gaussians(torch.zeros(2, 4), torch.zeros(2, 4, 4).double(), 1), "float64"),
        (lambda: sample_gaussians(torch.zeros(2, 4), torch.zeros(2, 4, 4), -1), "-1"),
        (
            lambda: sample_gaussians(torch.zeros(2, 4), torch.zeros(2, 4, 4), 1, class_id_C=torch.zeros(3).long()),
            r"\(3,\)",
        ),
        (lambda: sample_low_rank(torch.zeros(2, 4), torch.zeros(2, 1, 5), 0.1, 1), r"\(2, 1, 5\)"),
        (lambda: sample_low_rank(torch.zeros(2, 4), torch.zeros(2, 1, 4), -0.1, 1), "-0.1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
