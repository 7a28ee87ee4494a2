"""The baseline of the statistics benchmark measures the same Gaussians as ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from statistics_truth import spread_of

from slca_fast.methods.gaussians import ClassGaussians

SOURCE = Path(__file__).parents[2] / "bench" / "official_statistics.py"


@pytest.fixture(scope="module")
def official():
    spec = importlib.util.spec_from_file_location("official_statistics", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("storage", ["auto", "dense"])
def test_same_moments_and_same_distribution(official, storage):
    features = torch.randn(3 * 15, 32, generator=torch.Generator().manual_seed(0)) + 2
    labels = torch.arange(45) % 3
    means, covariances = official.official_moments(features, labels, 3, 1e-2)
    ours = ClassGaussians(32, ridge=1e-2, storage=storage)
    ours.update(features, labels)
    torch.testing.assert_close(ours.means, means, rtol=1e-13, atol=1e-13)
    for c in range(3):
        plus_ridge = ours.covariance(c) + 1e-2 * torch.eye(32, dtype=torch.float64)
        torch.testing.assert_close(plus_ridge, covariances[c], rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    theirs, their_labels = official.official_samples(means, covariances, 4000)
    mine, my_labels = ours.sample(4000, seed=0)
    assert torch.equal(their_labels, my_labels)
    for samples in (theirs, mine):
        for c in range(3):
            radius, mean, z_score = spread_of(samples[my_labels == c], means[c], covariances[c])
            assert radius > 1e-3 and mean > 1e-3 and abs(z_score) < 4
