"""Sequential fine-tuning and its bounds: nothing is remembered, the heads classify as they are trained."""

from __future__ import annotations

from slca_fast.config import Config
from slca_fast.methods.base import Method, refuse


class SeqFT(Method):
    """One learning rate for backbone and heads."""

    name = "seqft"

    @classmethod
    def check(cls, config: Config) -> None:
        super().check(config)
        if config.optim.backbone_lr_scale != 1:
            scale = config.optim.backbone_lr_scale
            raise refuse("optim.backbone_lr_scale", scale, cls.name, "give 1, or --method slowft")


class SlowFT(Method):
    """A slow backbone, the papers' first half alone."""

    name = "slowft"

    @classmethod
    def check(cls, config: Config) -> None:
        super().check(config)
        if config.optim.backbone_lr_scale == 1 and config.model.trainable == "full":
            raise refuse("optim.backbone_lr_scale", 1, cls.name, "give less than 1, or --method seqft")


class Probe(Method):
    """A frozen backbone."""

    name = "probe"

    @classmethod
    def check(cls, config: Config) -> None:
        super().check(config)
        if config.model.trainable != "head":
            raise refuse("model.trainable", config.model.trainable, cls.name, "give head, or --method slowft")


class Joint(Method):
    """All classes at once."""

    name = "joint"

    @classmethod
    def check(cls, config: Config) -> None:
        super().check(config)
        tasks = config.tasks
        if tasks.scenario != "cil":
            raise refuse("tasks.scenario", tasks.scenario, cls.name, "give cil")
        if tasks.sizes is None or len(tasks.sizes) != 1:
            sizes = None if tasks.sizes is None else list(tasks.sizes)
            raise refuse("tasks.sizes", sizes, cls.name, "give one task with the number of all classes, as 100")
