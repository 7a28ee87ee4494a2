"""Linear heads, one per task, and the read-only classifier that evaluation uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from slca_fast.seeds import head_key


class Classifier(nn.Module):
    """One linear head per task on ``feature_dim`` features; only the newest one learns."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.heads = nn.ModuleList()

    @property
    def linears(self) -> list[nn.Linear]:
        """The heads, oldest first."""
        return cast(list[nn.Linear], list(self.heads))

    @property
    def task_sizes(self) -> tuple[int, ...]:
        return tuple(head.out_features for head in self.linears)

    def grow(self, num_labels: int, seed: int, device: torch.device) -> nn.Linear:
        """Appends (and returns) a head with weights from a normal of std 0.02 truncated at +-2, bias 0.

        Older heads are frozen. ``seed`` and the number of heads decide the weights.
        """
        for head in self.linears[-1:]:
            head.requires_grad_(False)
        generator = torch.Generator().manual_seed(head_key(seed, len(self.heads)))
        # Born empty: the default initialisation would draw from the caller's generator.
        head = nn.Linear(self.feature_dim, num_labels, device="meta").to_empty(device="cpu")
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        nn.init.zeros_(head.bias)
        self.heads.append(head.to(device))
        return self.linears[-1]

    def stacked(self) -> dict[str, Tensor]:
        """The weights ``[C, D]`` and biases ``[C]`` of all heads, copied; nothing without heads."""
        if not self.heads:
            return {}
        parts = {"weight": [h.weight.detach() for h in self.linears], "bias": [h.bias.detach() for h in self.linears]}
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def load_stacked(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``stacked`` for as many heads; raises KeyError and RuntimeError for others."""
        sizes = list(self.task_sizes)
        for head, weight, bias in zip(self.linears, tensors["weight"].split(sizes), tensors["bias"].split(sizes)):
            head.load_state_dict({"weight": weight, "bias": bias})

    def linear(self) -> LinearClassifier:
        """All heads as one matrix, copied, in float32."""
        stacked = self.stacked()
        return LinearClassifier(stacked["weight"].float(), stacked["bias"].float(), self.task_sizes)


@dataclass(frozen=True)
class LinearClassifier:
    """Heads of all tasks as one value: ``weight_CD`` ``[C, D]`` and ``bias_C`` ``[C]``, cut by ``task_sizes``."""

    weight_CD: Tensor
    bias_C: Tensor
    task_sizes: tuple[int, ...]

    def scores(self, features_ND: Tensor) -> Tensor:
        """Logits ``[N, C]`` for features ``[N, D]``."""
        return torch.nn.functional.linear(features_ND, self.weight_CD, self.bias_C)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and biases by name, for a checkpoint."""
        return {"weight": self.weight_CD, "bias": self.bias_C}

    def linear(self) -> LinearClassifier:
        """Itself."""
        return self

    def folded(self, feature_scale: float) -> LinearClassifier:
        """SLCA++'s inference scales as weights: head k sees ``1 + feature_scale (t - k)`` times its input.

        Biases are not scaled.
        """
        task = len(self.task_sizes) - 1
        scale = torch.cat(
            [torch.full((size,), 1 + feature_scale * (task - k)) for k, size in enumerate(self.task_sizes)]
        )
        return LinearClassifier(self.weight_CD * scale.to(self.weight_CD)[:, None], self.bias_C, self.task_sizes)
