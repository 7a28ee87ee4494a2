"""How large everything is: as on a GPU, and for the dry run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slca_fast.config import Config


@dataclass(frozen=True)
class Sizes:
    """One set of sizes."""

    dry: bool
    batch_sizes: tuple[int, ...]
    rounds: int
    """Interleaved rounds of a step's or an image source's timing."""
    op_seconds: float
    """Rounds of one sample of an op."""
    num_classes: int
    classes_per_task: int
    images_per_class: tuple[int, int]
    """Training and test images."""
    files_per_class: tuple[int, int]
    """Of them, different files; the others are further names of these."""
    side: int
    """Of a file in pixels."""
    epochs: int
    """Of the whole run; with fewer than planned the rest is extrapolated."""
    planned_epochs: int
    official_seconds: float
    """For each of the official way's two rates."""
    pair_tasks: int
    """Tasks of each of the two runs that are compared."""
    pair_epochs: int
    stream_images: int
    """Training images of one epoch of the measured image sources."""
    test_selection: tuple[str, ...]
    """Arguments of pytest."""

    @property
    def num_tasks(self) -> int:
        return -(-self.num_classes // self.classes_per_task)

    def config(self, method: str) -> Config:
        """ "slca" or "slcapp" with ImageNet-R's settings and no downloaded weights; as small as the sizes are."""
        from slca_fast.config import TasksConfig
        from slca_fast.methods.presets import PRESETS

        base = PRESETS[f"{method}-imagenet-r-in21k"]()
        config = replace(
            base,
            tasks=TasksConfig(initial=self.classes_per_task, increment=self.classes_per_task),
            model=replace(base.model, pretrained=False),
            optim=replace(base.optim, epochs=self.epochs),
        )
        if not self.dry:
            return config
        return replace(
            config,
            data=replace(config.data, image_size=32),
            model=replace(
                config.model, name="vit_tiny_patch16_224", kwargs={"embed_dim": 24, "depth": 2, "num_heads": 2}
            ),
            optim=replace(config.optim, batch_size=self.batch_sizes[0], milestones=(1,)),
            align=replace(config.align, epochs=1, samples_per_class=8),
        )


REAL = Sizes(
    dry=False,
    batch_sizes=(128, 256),
    rounds=12,
    op_seconds=3.0,
    num_classes=200,
    classes_per_task=20,
    images_per_class=(120, 30),
    files_per_class=(2, 1),
    side=400,
    epochs=50,
    planned_epochs=50,
    official_seconds=13.0,
    pair_tasks=2,
    pair_epochs=2,
    stream_images=6_000,
    test_selection=("-m", "gpu", "tests"),
)
DRY = Sizes(
    dry=True,
    batch_sizes=(4,),
    rounds=2,
    op_seconds=0.0,
    num_classes=4,
    classes_per_task=2,
    images_per_class=(4, 2),
    files_per_class=(2, 1),
    side=40,
    epochs=2,
    planned_epochs=2,
    official_seconds=0.0,
    pair_tasks=1,
    pair_epochs=1,
    stream_images=8,
    test_selection=("-m", "gpu", "tests/methods/test_alignment.py"),
)
