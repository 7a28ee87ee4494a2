"""What SLCA and SLCA++ do about old tasks in alignment: the only thing in which their second stages differ.

A class of task t_c is ``age = t - t_c`` tasks old when task t has been learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slca_fast.model.head import LinearClassifier

# SLCA++: r ~ U(mu - 0.01, mu + 0.01), wherever the range of feature_scale is drawn.
SCALE_HALF_WIDTH = 0.01


@dataclass(frozen=True)
class AgeScaling:
    """Means and samples as they are; the base of the two below."""

    def mean_scale(self, age_C: Tensor, num_tasks: int) -> Tensor | None:
        """Factor ``[C]`` of every class mean before sampling; None: 1."""
        return None

    def scaled(self, features_SD: Tensor, age_S: Tensor, generator: torch.Generator | None) -> Tensor:
        """Sampled features of classes that are ``age_S`` old, as alignment shall see them."""
        return features_SD

    def folded(self, classifier: LinearClassifier) -> LinearClassifier:
        """The aligned classifier as inference uses it."""
        return classifier


@dataclass(frozen=True)
class MeanScaling(AgeScaling):
    """SLCA (arXiv 2303.05118): means times 0.9 + 0.1 (t_c + 1)/(t + 1)."""

    def mean_scale(self, age_C: Tensor, num_tasks: int) -> Tensor:
        return 0.9 + 0.1 * (num_tasks - age_C) / num_tasks


@dataclass(frozen=True)
class FeatureScaling(AgeScaling):
    """SLCA++ (arXiv 2408.08295): samples shrink by 1/(1 + r (t - t_c)), inference scales heads by 1 + mu (t - k)."""

    mu: float

    def scaled(self, features_SD: Tensor, age_S: Tensor, generator: torch.Generator | None) -> Tensor:
        return features_SD * old_task_shrink(age_S, self.mu, generator).to(features_SD)[:, None]

    def folded(self, classifier: LinearClassifier) -> LinearClassifier:
        return classifier.folded(self.mu)


def age_scaling(mean_scaling: bool, feature_scale: float) -> AgeScaling:
    """The scaling of ``align.mean_scaling`` and ``align.feature_scale``, of which one at most is on."""
    if mean_scaling:
        return MeanScaling()
    return FeatureScaling(feature_scale) if feature_scale > 0 else AgeScaling()


def task_age(task_sizes: Sequence[int]) -> np.ndarray:
    """For every class the number of tasks since its own, ``t - t_c``, by the true task boundaries; int64 ``[C]``."""
    return len(task_sizes) - 1 - np.repeat(np.arange(len(task_sizes)), task_sizes)


def old_task_shrink(age_S: Tensor, feature_scale: float, generator: torch.Generator | None = None) -> Tensor:
    """SLCA++'s factor of every sample, ``1 / (1 + r (t - t_c))`` with ``r ~ U(mu - 0.01, mu + 0.01)``; ``[S]``."""
    device = torch.device("cpu") if generator is None else generator.device
    uniform_S = torch.rand(len(age_S), generator=generator, device=device).to(age_S.device)
    r_S = feature_scale + SCALE_HALF_WIDTH * (2 * uniform_S - 1)
    return 1 / (1 + r_S * age_S)
