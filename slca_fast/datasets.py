"""The data sets that have a name, one row each, and everything that depends on them.

A new one is a row here and its preparer; tests/test_datasets.py says where the documentation lists it. Training
values are those of the published configurations (github.com/GengDavid/SLCA, exps/) unless a row says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RecipeSpec:
    """One training transform as numbers for 224-pixel inputs; the test transform follows from it (data/plan.py)."""

    crop: Literal["random-resized", "resize-random", "none"]
    flip: bool = True
    brightness: float = 0.0
    """Factor drawn from U(1 - b, 1 + b)."""
    resize: int = 300
    """resize-random: side of the squashed square the crop is taken from, at 224."""
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Schedule:
    """How long a task is trained from one kind of pre-trained weights; milestones in epochs."""

    epochs: int
    slca_milestones: tuple[int, ...]
    slcapp_milestones: tuple[int, ...]
    """SLCA++'s schedule is a cosine, whose end is 0.1^(number of milestones)."""


@dataclass(frozen=True)
class Training:
    """The hyper-parameters of SLCA and SLCA++ that depend on the data set."""

    classes_per_task: int | None = 20
    """The last task takes the remainder; none: every task is one domain with all classes."""
    in21k: Schedule = Schedule(50, (40,), (40,))
    """Supervised ImageNet-21k weights."""
    mocov3: Schedule = Schedule(90, (80,), (60, 80))
    """Self-supervised MoCo v3 weights."""
    temperature: float = 0.1
    """tau of the alignment."""
    sce_weights: tuple[float, float] = (1.0, 0.1)
    """SLCA++: weights of cross-entropy and of reverse cross-entropy."""
    slcapp_weight_decay: float = 5e-4
    """Stage 1 of SLCA++; SLCA's is the same everywhere."""

    def schedule(self, weights: str) -> Schedule:
        """Of ``"in21k"`` or ``"mocov3"``."""
        return {"in21k": self.in21k, "mocov3": self.mocov3}[weights]


@dataclass(frozen=True)
class Dataset:
    """One data set."""

    title: str
    num_train: int
    """Images, over all classes and domains, as published."""
    num_test: int
    num_classes: int
    side: float
    """Typical side of an image in pixels (geometric mean of height and width): that of the made-up stand-in."""
    preparer: str
    """``module:function`` that brings it into the image-folder layout; imported only when it is called."""
    recipe: RecipeSpec
    side_spread: float = 0.25
    """Standard deviation of the log of the side."""
    domains: tuple[str, ...] = ()
    """In task order; empty for data without domains."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per-channel mean subtracted after scaling to [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    training: Training = Training()

    @property
    def counts(self) -> tuple[int, int, int]:
        """Published numbers of (train images, test images, classes)."""
        return self.num_train, self.num_test, self.num_classes

    @property
    def images_per_class(self) -> tuple[int, int]:
        """(train, test), over all domains, rounded."""
        return round(self.num_train / self.num_classes), round(self.num_test / self.num_classes)


_PREPARE = "slca_fast.data.prepare"
# Fine-grained ImageNet-R and Cars use the stronger reverse term and no weight decay.
_STRONG = Training(sce_weights=(0.5, 0.5), slcapp_weight_decay=0.0)
_IN21K_20 = Schedule(20, (18,), (18,))

DATASETS: dict[str, Dataset] = {
    "cifar100": Dataset(
        "CIFAR-100",
        50_000,
        10_000,
        100,
        side=32.0,
        side_spread=0.0,
        preparer=f"{_PREPARE}.cifar100:prepare_cifar100",
        recipe=RecipeSpec("random-resized", brightness=63 / 255),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        training=Training(classes_per_task=10, in21k=_IN21K_20),
    ),
    "imagenet-r": Dataset(
        "ImageNet-R",
        24_000,
        6_000,
        200,
        side=400.0,
        preparer=f"{_PREPARE}.imagenet_r:prepare_imagenet_r",
        recipe=RecipeSpec("random-resized"),
        training=_STRONG,
    ),
    "cub200": Dataset(
        "CUB-200-2011",
        5_994,
        5_794,
        200,
        side=430.0,
        side_spread=0.12,
        preparer=f"{_PREPARE}.cub200:prepare_cub200",
        recipe=RecipeSpec("resize-random"),
    ),
    "cars196": Dataset(
        "Stanford Cars",
        8_144,
        8_041,
        196,
        side=580.0,
        side_spread=0.4,
        preparer=f"{_PREPARE}.cars196:prepare_cars196",
        recipe=RecipeSpec("resize-random"),
        training=replace(_STRONG, temperature=0.05),
    ),
    # The official code has its transforms, which are CUB-200's, but no configuration: the training is CUB-200's too,
    # on 9 tasks of 5 classes as in APG (github.com/TOM-tym/APG).
    "resisc45": Dataset(
        "NWPU-RESISC45",
        25_200,
        6_300,
        45,
        side=256.0,
        side_spread=0.0,
        preparer=f"{_PREPARE}.resisc45:prepare_resisc45",
        recipe=RecipeSpec("resize-random"),
        training=Training(classes_per_task=5),
    ),
    # No published configuration: CIFAR-100's training on the field's order of domains, which needs no permutation.
    "domainnet": Dataset(
        "DomainNet",
        409_832,
        176_743,
        345,
        side=450.0,
        domains=("real", "quickdraw", "painting", "sketch", "infograph", "clipart"),
        preparer=f"{_PREPARE}.domainnet:prepare_domainnet",
        recipe=RecipeSpec("resize-random"),
        training=Training(classes_per_task=None, in21k=_IN21K_20),
    ),
}


def recipes() -> dict[str, RecipeSpec]:
    """Every training transform by its name: the data sets', and ``none``."""
    return {name: row.recipe for name, row in DATASETS.items()} | {"none": RecipeSpec("none", flip=False)}


def preparers() -> dict[str, str]:
    """``module:function`` of everything ``prepare`` knows: the data sets, any ``folder``, and ``synthetic`` images."""
    return {name: row.preparer for name, row in DATASETS.items()} | {
        "folder": f"{_PREPARE}.image_folder:prepare_image_folder",
        "synthetic": f"{_PREPARE}.synthetic:prepare_synthetic",
    }
