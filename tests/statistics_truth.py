"""Yardsticks of means, covariances and samples."""

from __future__ import annotations

import numpy as np
import scipy.stats
import torch


def conditioned_features(num_rows, dim, condition, seed=0):
    """Rows of a covariance with eigenvalues from 1 to 1/condition, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    scale = torch.logspace(0, -np.log10(condition) / 2, dim, dtype=torch.float64)
    return (torch.randn(num_rows, dim, generator=generator, dtype=torch.float64) * scale) @ basis + 3


def relative_error(ours, truth):
    return np.linalg.norm(np.asarray(ours, np.float64) - truth) / np.linalg.norm(truth)


def spread_of(samples_SD, mean_D, covariance_DD):
    """p-values: whitened squared norms are chi-square, the whitened mean is normal."""
    whitener = torch.linalg.inv(torch.linalg.cholesky(covariance_DD))
    white = (samples_SD.double() - mean_D) @ whitener.mT
    num_samples, dim = white.shape
    radius = scipy.stats.kstest(white.square().sum(1).numpy(), "chi2", args=(dim,)).pvalue
    mean = scipy.stats.chi2.sf(float(white.mean(0).square().sum() * num_samples), dim)
    empirical = white.mT @ white / num_samples
    off = empirical - torch.eye(dim)
    entries = dim * (dim + 1) // 2
    # sqrt(n) off-diagonal ~ N(0, 1), sqrt(n/2) diagonal ~ N(0, 1)
    statistic = num_samples * (off.tril(-1).square().sum() + off.diagonal().square().sum() / 2)
    z_score = (float(statistic) - entries) / np.sqrt(2 * entries)
    return radius, mean, z_score
