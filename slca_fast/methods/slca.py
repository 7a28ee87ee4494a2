"""SLCA (arXiv 2303.05118) and SLCA++ (arXiv 2408.08295): class Gaussians, then classifier alignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from slca_fast.config import Config
from slca_fast.methods.alignment import align, require_memory
from slca_fast.methods.base import Method, refuse
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.head import LinearClassifier


class SLCA(Method):
    """Alignment on features sampled from one Gaussian per class, whose means are scaled by the class's age."""

    name = "slca"

    def __init__(self, config: Config, feature_dim: int) -> None:
        super().__init__(config, feature_dim)
        self.remembers = config.align.epochs > 0
        self.gaussians = ClassGaussians(feature_dim, ridge=config.align.ridge)
        self._of_task: dict[int, ClassGaussians] = {}

    @property
    def title(self) -> str:
        return self.about.title if self.remembers else f"{self.about.title} without alignment"

    @classmethod
    def check(cls, config: Config) -> None:
        super().check(config)
        if config.align.feature_scale > 0:
            scale = config.align.feature_scale
            raise refuse("align.feature_scale", scale, cls.name, "give 0, or --method slcapp")

    def require_memory(self, num_labels: int, device: torch.device) -> None:
        require_memory(self.config.align, num_labels, self.feature_dim, device)

    def remember(self, task: int, features_ND: Tensor, label_N: Tensor, kept: Mapping[str, Tensor]) -> None:
        measured = ClassGaussians(self.feature_dim, ridge=self.config.align.ridge)
        measured.update(features_ND, label_N)
        self._take_in(task, measured)

    def classifier(
        self, heads: LinearClassifier, task: int, on_epoch: Callable[[int, float], None] = lambda epoch, loss: None
    ) -> LinearClassifier:
        if not self.remembers:
            return heads
        config = self.config
        return align(heads, self.gaussians, config.align, config.optim.weight_decay, config.seed, on_epoch)

    def save(self, task: int, path: Path) -> None:
        self._of_task[task].save(path)

    def load(self, task: int, path: Path, device: torch.device) -> None:
        measured = ClassGaussians.load(path, device)
        if measured.feature_dim != self.feature_dim:
            raise ValueError(f"{path} holds no Gaussians of width {self.feature_dim}")
        self._take_in(task, measured)

    def tensors(self) -> dict[str, Tensor]:
        return {f"gaussians.{name}": tensor for name, tensor in self.gaussians.state_tensors().items()}

    def _take_in(self, task: int, measured: ClassGaussians) -> None:
        # Factored task by task, also after a resume, so that the factors are the same to the last bit.
        measured.factorize()
        # Only the newest task's is ever saved.
        self._of_task = {task: measured}
        self.gaussians = self.gaussians.extended(measured)


class SLCApp(SLCA):
    """Alignment whose samples shrink by the age of their class, undone at inference."""

    name = "slcapp"

    @classmethod
    def check(cls, config: Config) -> None:
        Method.check.__func__(cls, config)
        if config.align.mean_scaling:
            raise refuse("align.mean_scaling", True, cls.name, "give false, or --method slca")
