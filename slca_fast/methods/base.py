"""What a method is: what it remembers of a task, and how it classifies with that.

Stage 1 (training/stage1.py) is common to all methods and decided by the configuration; a method begins where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from slca_fast.config import Config
from slca_fast.errors import UserError
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.methods.settings import settings_of
from slca_fast.methods.table import METHODS, About
from slca_fast.model.head import LinearClassifier
from slca_fast.training.evaluation import Scores


class TaskClassifier(Scores, Protocol):
    """Classifies features by all labels seen, the softmax of its scores being a probability.

    A value that a checkpoint holds as named tensors.
    """

    def tensors(self) -> dict[str, Tensor]:
        """What ``Method.classifier_of`` makes the same classifier from."""
        ...

    def linear(self) -> LinearClassifier | None:
        """Weights and biases that rank the labels alike; None where there are none."""
        ...


class Method:
    """One method's memory in one run. The base remembers nothing and classifies by the heads as they are trained."""

    name: ClassVar[str]
    """Its key in the table."""
    Settings: ClassVar[type | None] = None
    """Frozen dataclass of settings of its own, the configuration's ``method_settings``."""
    remembers: bool = False
    """Whether ``remember`` is to be called, which costs a pass over the task's images."""

    def __init__(self, config: Config, feature_dim: int) -> None:
        self.config, self.feature_dim = config, feature_dim
        self.settings = settings_of(config, self.Settings)

    @property
    def about(self) -> About:
        return METHODS[self.name]

    @property
    def title(self) -> str:
        """The method's name in reports."""
        return self.about.title

    @classmethod
    def check(cls, config: Config) -> None:
        """Raises UserError naming the option of ``config`` that makes no sense with this method."""
        settings_of(config, cls.Settings)

    def require_memory(self, num_labels: int, device: torch.device) -> None:
        """Raises UserError naming the option with which ``num_labels`` labels take more memory than ``device`` has."""

    def before_task(self, task: int, features: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Called when stage 1 of ``task`` begins; what it returns is handed to ``remember``, also after a resume.

        ``features()`` makes a pass over the task's training images: float32 ``[N, D]`` and labels ``[N]``.
        """
        return {}

    def remember(self, task: int, features_ND: Tensor, label_N: Tensor, kept: Mapping[str, Tensor]) -> None:
        """Takes in ``task``: features of its training images after stage 1, under the test transform."""

    def classifier(
        self, heads: LinearClassifier, task: int, on_epoch: Callable[[int, float], None] = lambda epoch, loss: None
    ) -> TaskClassifier:
        """The classifier of all labels seen once ``task`` is remembered; ``heads`` as they are trained."""
        return heads

    def classifier_of(self, tensors: Mapping[str, Tensor], task_sizes: tuple[int, ...]) -> TaskClassifier:
        """The inverse of ``TaskClassifier.tensors``; raises KeyError for tensors of another kind."""
        return LinearClassifier(tensors["weight"], tensors["bias"], task_sizes)

    def save(self, task: int, path: Path) -> None:
        """Writes what is remembered of ``task``, once and for good; only called where ``remembers``."""
        raise AssertionError(f"{type(self).__name__} remembers nothing")

    def load(self, task: int, path: Path, device: torch.device) -> None:
        """Takes in what ``save`` wrote, in the order of the tasks; raises OSError or ValueError for a damaged file."""
        raise AssertionError(f"{type(self).__name__} remembers nothing")

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name, for the run's digest."""
        # A method without a memory counts as empty Gaussians: digests stay comparable with those of earlier versions.
        return {f"gaussians.{name}": t for name, t in ClassGaussians(self.feature_dim).state_tensors().items()}


def refuse(option: str, value: Any, method: str, fix: str) -> UserError:
    """The error for a setting that makes no sense with ``method``."""
    return UserError(f"--{option} is {value!r}, which --method {method} cannot mean: {fix}")
