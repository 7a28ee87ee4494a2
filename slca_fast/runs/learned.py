"""What a run has learnt: weights, heads and a method's memory, and how they go into checkpoints and come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from slca_fast.methods.base import Method, TaskClassifier
from slca_fast.model.backbone import Backbone
from slca_fast.model.head import Classifier
from slca_fast.runs.old_weights import classifier_tensors, stacked_heads
from slca_fast.runs.snapshot import BadSnapshot, read_snapshot, weights_sha256
from slca_fast.training.optim import optimizer_tensors

TensorGroups = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Learned:
    """Everything of a run that learns or is remembered."""

    backbone: Backbone
    method: Method
    heads: Classifier = field(init=False)
    """As they are trained, one per task."""
    classifier: TaskClassifier | None = None
    """Of the newest task that stage 2 has seen; evaluation uses it."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What the method asked to keep when the current task began."""

    def __post_init__(self) -> None:
        self.heads = Classifier(self.backbone.feature_dim)

    def head_of(self, task: int, num_labels: int, seed: int, device: torch.device) -> nn.Linear:
        """The head that stage 1 of ``task`` trains: a new one, or that of a checkpoint within the task."""
        if task < len(self.heads.heads):
            return self.heads.linears[task]
        return self.heads.grow(num_labels, seed, device)

    def tensors(self, optimizer: torch.optim.Optimizer | None) -> dict[str, dict[str, Tensor]]:
        """The tensor groups of a checkpoint: backbone, heads, and where there are any classifier, kept, optimizer."""
        groups = {"backbone": trainable_state(self.backbone), "heads": self.heads.stacked()}
        if self.classifier is not None:
            groups["classifier"] = self.classifier.tensors()
        if self.kept:
            groups["kept"] = self.kept
        if optimizer is not None:
            groups["optimizer"] = optimizer_tensors(optimizer)
        return groups

    def restore(self, groups: TensorGroups, task_sizes: tuple[int, ...], device: torch.device) -> None:
        """Puts a checkpoint's tensors back. Raises BadSnapshot when they are not this model's or method's."""
        heads = Classifier(self.backbone.feature_dim)
        try:
            parameters = dict(self.backbone.named_parameters())
            with torch.no_grad():
                for name, tensor in groups["backbone"].items():
                    parameters[name].copy_(tensor)
            saved = stacked_heads(groups["heads"])
            totals = [0, *accumulate(task_sizes)]
            for task in range(totals.index(len(saved["weight"]))):
                heads.grow(task_sizes[task], 0, device)
            heads.load_stacked(saved)
            classifier = classifier_of(self.method, groups, task_sizes, device)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise BadSnapshot(f"its weights are not this model's ({' '.join(str(error).split())[:200]})") from error
        self.heads, self.classifier = heads, classifier
        self.kept = {name: tensor.to(device) for name, tensor in groups.get("kept", {}).items()}

    def digest(self) -> str:
        """One digest over backbone, heads and memory (``weights_sha256`` of the summary)."""
        return weights_sha256(
            {
                **{f"backbone.{name}": tensor for name, tensor in self.backbone.state_dict().items()},
                **{f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()},
                **self.method.tensors(),
            }
        )

    def not_finite(self) -> str | None:
        """The name of a weight that learns and holds NaN or infinity; None when all are finite."""
        # Earlier heads no longer change.
        newest = [(f"heads.{name}", p) for head in self.heads.linears[-1:] for name, p in head.named_parameters()]
        for name, tensor in (*trainable_state(self.backbone).items(), *newest):
            if not tensor.isfinite().all():
                return name
        return None


def classifier_of(
    method: Method, groups: TensorGroups, task_sizes: tuple[int, ...], device: torch.device
) -> TaskClassifier | None:
    """The classifier in a checkpoint; None when it was made before any. Raises KeyError for another method's."""
    tensors = classifier_tensors(groups)
    if tensors is None:
        return None
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    num_labels = len(next(iter(tensors.values())))
    totals = list(accumulate(task_sizes))
    if num_labels not in totals:
        raise KeyError(f"a classifier of {num_labels} labels")
    return method.classifier_of(tensors, task_sizes[: totals.index(num_labels) + 1])


def trainable_state(backbone: Backbone) -> dict[str, Tensor]:
    """Backbone parameters that learn, by name."""
    return {name: p.detach() for name, p in backbone.named_parameters() if p.requires_grad}


def frozen_state(backbone: Backbone) -> dict[str, Tensor]:
    """Everything else of the backbone, by name: it never changes, so it is saved once."""
    trainable = trainable_state(backbone)
    return {name: t.detach() for name, t in backbone.state_dict().items() if name not in trainable}


def restore_frozen(backbone: Backbone, folder: Path, expected: str | None, report: Callable[[str], None]) -> str:
    """Puts the run's own frozen weights from ``folder`` into ``backbone``; returns their digest.

    The file of --model.checkpoint may have changed or gone since; when ``folder`` is damaged instead, what was just
    built serves if it has the digest ``expected``. Raises BadSnapshot when neither does.
    """
    try:
        tensors, _ = read_snapshot(folder)
        backbone.load_state_dict(tensors.get("backbone", {}), strict=False)
    except (BadSnapshot, RuntimeError) as problem:
        report(f"frozen weights ignored: {problem}")
    digest = weights_sha256(frozen_state(backbone))
    if expected is not None and digest != expected:
        raise BadSnapshot("the frozen weights are lost, and --model.checkpoint does not give them")
    return digest
