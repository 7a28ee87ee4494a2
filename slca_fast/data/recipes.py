"""The published training transforms, as numbers. Sizes are for 224-pixel inputs; they scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

REFERENCE_SIZE = 224
TEST_RESIZE = 256
"""Test transform of every recipe but ``none``: Resize(256) on the short side, CenterCrop(224)."""


@dataclass(frozen=True)
class RecipeSpec:
    """One training transform; the test transform follows from it (see plan.test_plan)."""

    crop: Literal["random-resized", "resize-random", "none"]
    flip: bool = True
    brightness: float = 0.0
    """Factor drawn from U(1 - b, 1 + b)."""
    resize: int = 300
    """resize-random: side of the squashed square the crop is taken from, at 224."""
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


RECIPES = {
    "imagenet-r": RecipeSpec("random-resized"),
    "cub200": RecipeSpec("resize-random"),
    "cars196": RecipeSpec("resize-random"),
    "resisc45": RecipeSpec("resize-random"),
    "domainnet": RecipeSpec("resize-random"),
    "cifar100": RecipeSpec("random-resized", brightness=63 / 255),
    "none": RecipeSpec("none", flip=False),
}


def scaled(side: int, image_size: int) -> int:
    """A side given for 224-pixel inputs, for inputs of image_size pixels."""
    return round(side * image_size / REFERENCE_SIZE)
