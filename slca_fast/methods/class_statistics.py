"""Class statistics after stage 1: one feature pass over a task's images, one Gaussian per label."""

from __future__ import annotations

from collections.abc import Callable

from slca_fast.data.stream import ImageSet
from slca_fast.machine.ranks import ALONE, Ranks
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.backbone import Backbone
from slca_fast.training.features import extract_features


def measure_classes(
    backbone: Backbone,
    images: ImageSet,
    ridge: float,
    precision: str,
    on_step: Callable[[int], None] = lambda num_images: None,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> ClassGaussians:
    """Gaussians of the images' labels (class statistics after stage 1): the same bits on any number of ranks."""
    features, labels = extract_features(backbone, images, precision, on_step, ranks, should_stop)
    gaussians = ClassGaussians(backbone.feature_dim, ridge=ridge)
    gaussians.update(features, labels)
    return gaussians
