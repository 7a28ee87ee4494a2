"""Nearest class mean (Mensink et al. 2013; in continual learning since iCaRL): no alignment, no samples.

With m_c the mean feature of class c and x a feature, the score of c is

    cosine:     <x, m_c> / (|x| |m_c| tau)        euclidean:     -|x - m_c|^2 / (2 tau)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from slca_fast.config import Config
from slca_fast.errors import UserError
from slca_fast.methods.base import Method
from slca_fast.methods.tensor_file import read_tensors, write_tensors
from slca_fast.model.head import LinearClassifier

KIND = "class_means"


@dataclass(frozen=True)
class Settings:
    """Of ``--method ncm``."""

    metric: Literal["cosine", "euclidean"] = "cosine"
    """What near means."""
    temperature: float = 0.05
    """tau, which decides probabilities and not which class is nearest."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"--method_settings.temperature is {self.temperature}: give a positive number")


@dataclass(frozen=True)
class NearestMean:
    """Means ``[C, D]`` of all labels seen, float32; a label without images has zeros and is never chosen."""

    mean_CD: Tensor
    num_images_C: Tensor
    task_sizes: tuple[int, ...]
    settings: Settings

    def scores(self, features_ND: Tensor) -> Tensor:
        """``[N, C]`` as the module says; minus infinity for labels without images."""
        tau = self.settings.temperature
        if self.settings.metric == "cosine":
            scores_NC = F.normalize(features_ND, dim=1) @ F.normalize(self.mean_CD, dim=1).T / tau
        else:
            scores_NC = -torch.cdist(features_ND, self.mean_CD).square() / (2 * tau)
        return scores_NC.masked_fill(self.num_images_C == 0, -torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        """See ``NCM.classifier_of``."""
        return {"mean": self.mean_CD, "num_images": self.num_images_C}

    def linear(self) -> LinearClassifier:
        """The same ranking: cosine scores times |x|, or euclidean ones plus |x|^2 / (2 tau)."""
        tau = self.settings.temperature
        if self.settings.metric == "cosine":
            weight_CD, bias_C = F.normalize(self.mean_CD, dim=1) / tau, torch.zeros_like(self.mean_CD[:, 0])
        else:
            weight_CD, bias_C = self.mean_CD / tau, -self.mean_CD.square().sum(1) / (2 * tau)
        return LinearClassifier(weight_CD, bias_C.masked_fill(self.num_images_C == 0, -torch.inf), self.task_sizes)


class NCM(Method):
    """The class whose stored mean is nearest."""

    name = "ncm"
    Settings = Settings
    remembers = True

    def __init__(self, config: Config, feature_dim: int) -> None:
        super().__init__(config, feature_dim)
        self._of_task: dict[int, dict[str, Tensor]] = {}

    def remember(self, task: int, features_ND: Tensor, label_N: Tensor, kept: Mapping[str, Tensor]) -> None:
        label_C, num_images_C = torch.unique(label_N, return_counts=True)
        mean_CD = torch.stack([features_ND[label_N == label].double().mean(0) for label in label_C])
        self._of_task[task] = {"label": label_C, "mean": mean_CD, "num_images": num_images_C}

    def classifier(
        self, heads: LinearClassifier, task: int, on_epoch: Callable[[int, float], None] = lambda epoch, loss: None
    ) -> NearestMean:
        mean_CD = torch.zeros_like(heads.weight_CD)
        num_images_C = torch.zeros(len(mean_CD), dtype=torch.int64, device=mean_CD.device)
        for memory in self._of_task.values():
            mean_CD[memory["label"]] = memory["mean"].to(mean_CD)
            num_images_C[memory["label"]] = memory["num_images"]
        return NearestMean(mean_CD, num_images_C, heads.task_sizes, self.settings)

    def classifier_of(self, tensors: Mapping[str, Tensor], task_sizes: tuple[int, ...]) -> NearestMean:
        return NearestMean(tensors["mean"], tensors["num_images"], task_sizes, self.settings)

    def save(self, task: int, path: Path) -> None:
        write_tensors(path, KIND, {"feature_dim": self.feature_dim}, _on(self._of_task[task], torch.device("cpu")))

    def load(self, task: int, path: Path, device: torch.device) -> None:
        _, tensors = read_tensors(path, KIND)
        if set(tensors) != {"label", "mean", "num_images"} or tensors["mean"].shape[1:] != (self.feature_dim,):
            raise ValueError(f"{path} holds no means of width {self.feature_dim}")
        shape = tensors["mean"].shape[:1]
        if any(tensors[name].shape != shape or tensors[name].dtype != torch.int64 for name in ("label", "num_images")):
            raise ValueError(f"{path} does not hold a label and a number of images for each mean")
        self._of_task[task] = _on(tensors, device)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"means.{task}.{name}": tensor for task, memory in self._of_task.items() for name, tensor in memory.items()
        }


def _on(memory: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in memory.items()}
