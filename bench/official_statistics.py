"""Class statistics and samples in the official way (our own words for what SLCA's public code does), as a baseline.

Per class one float64 ``torch.cov`` plus the ridge; every alignment epoch builds one ``MultivariateNormal`` per class
again (and so factors its covariance again) and draws from it. Run as a script to compare it with ClassGaussians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from slca_fast.methods.gaussians import ClassGaussians


def official_moments(features_ND: Tensor, labels_N: Tensor, num_classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Means [C, D] and covariances [C, D, D] with the ridge, float64, class by class."""
    means, covariances = [], []
    for c in range(num_classes):
        rows = features_ND[labels_N == c].double()
        means.append(rows.mean(0))
        covariances.append(torch.cov(rows.T) + ridge * torch.eye(rows.shape[1], dtype=torch.float64))
    return torch.stack(means), torch.stack(covariances)


def official_samples(means_CD: Tensor, covariances_CDD: Tensor, num_per_class: int) -> tuple[Tensor, Tensor]:
    """One epoch's features [C * num_per_class, D] float32 and labels, class by class."""
    features = [
        MultivariateNormal(mean.float(), covariance.float()).sample((num_per_class,))
        for mean, covariance in zip(means_CD, covariances_CDD)
    ]
    return torch.cat(features), torch.arange(len(means_CD)).repeat_interleave(num_per_class)


def run_official(features_ND: Tensor, labels_N: Tensor, num_classes: int, num_epochs: int, num_per_class: int) -> None:
    means, covariances = official_moments(features_ND, labels_N, num_classes, 1e-4)
    for _ in range(num_epochs):
        official_samples(means, covariances, num_per_class)


def run_ours(features_ND: Tensor, labels_N: Tensor, num_epochs: int, num_per_class: int, storage: str = "auto") -> None:
    gaussians = ClassGaussians(features_ND.shape[1], storage=storage)
    gaussians.update(features_ND, labels_N)
    for epoch in range(num_epochs):
        gaussians.sample(num_per_class, seed=epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("classes", 20), ("rows", 120), ("dim", 768), ("epochs", 5), ("samples", 256), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    features = torch.randn(args.classes * args.rows, args.dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(args.classes).repeat(args.rows)
    ways = {
        "official": lambda: run_official(features, labels, args.classes, args.epochs, args.samples),
        "auto": lambda: run_ours(features, labels, args.epochs, args.samples),
        "dense": lambda: run_ours(features, labels, args.epochs, args.samples, "dense"),
    }
    elapsed_ms: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat > 0:
                elapsed_ms[name].append(1e3 * (time.perf_counter() - start))
    for name, values in elapsed_ms.items():
        ratios = [a / b for a, b in zip(elapsed_ms["official"], values)]
        print(
            f"{name:9s} median {statistics.median(values):9.1f} ms  min {min(values):9.1f}  max {max(values):9.1f}  "
            f"ratio {statistics.median(ratios):6.1f} ({min(ratios):.1f} to {max(ratios):.1f}), n = {len(values)}"
        )


if __name__ == "__main__":
    main()
