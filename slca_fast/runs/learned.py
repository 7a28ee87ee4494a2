"""What a run has learnt: weights, heads and a method's memory, and how they go into checkpoints and come back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
from slca_fast.training.optim import check_optimizer_tensors, optimizer_tensors, slow_learner_param_groups

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
            _require_weights(self.backbone, groups["backbone"])
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
            if not all(tensor.isfinite().all() for tensor in heads.state_dict().values()):
                raise ValueError("the heads hold NaN or infinity")
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise BadSnapshot(f"its weights are not this model's ({' '.join(str(error).split())[:200]})") from error
        self.heads, self.classifier = heads, classifier
        self.kept = {name: tensor.to(device) for name, tensor in groups.get("kept", {}).items()}

    def require_tasks(self, num_finished: int, num_heads: Collection[int]) -> None:
        """Raises BadSnapshot unless there are so many heads, and a classifier of the finished tasks or of one more."""
        classified = 0 if self.classifier is None else len(self.classifier.task_sizes)
        if len(self.heads.heads) not in num_heads or classified not in (num_finished, num_finished + 1):
            heads = f"{len(self.heads.heads)} heads and a classifier of {classified} tasks"
            raise BadSnapshot(f"it has {heads} after {num_finished} tasks")

    def check_optimizer(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Raises BadSnapshot unless ``tensors`` are those of optimizer ``name`` on the newest head and the backbone."""
        groups = slow_learner_param_groups(self.backbone, self.heads.linears[-1].parameters())
        try:
            check_optimizer_tensors(name, [p for group in groups for p in group["params"]], tensors)
        except ValueError as error:
            raise BadSnapshot(f"optimizer.safetensors: {error}") from error

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
    """The classifier in a checkpoint; None when it was made before any.

    Raises KeyError, TypeError, ValueError and RuntimeError for another method's, or one of other labels or features.
    """
    tensors = classifier_tensors(groups)
    if tensors is None:
        return None
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    num_labels = len(next(iter(tensors.values()), ()))
    totals = list(accumulate(task_sizes))
    if num_labels not in totals:
        raise KeyError(f"a classifier of {num_labels} labels")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError("the classifier holds NaN or infinity")
    classifier = method.classifier_of(tensors, task_sizes[: totals.index(num_labels) + 1])
    if classifier.scores(torch.zeros(1, method.feature_dim, device=device)).shape != (1, num_labels):
        raise ValueError(f"the classifier does not score {num_labels} labels")
    return classifier


def _require_weights(backbone: Backbone, tensors: Mapping[str, Tensor]) -> None:
    """Raises KeyError and ValueError unless ``tensors`` has every parameter that learns, in its shape, and finite."""
    for name in trainable_state(backbone):
        if name not in tensors:
            raise KeyError(f"no {name}")
    parameters = dict(backbone.named_parameters())
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape or not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype} of {list(tensor.shape)}, not of {list(parameters[name].shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")


def trainable_state(backbone: Backbone) -> dict[str, Tensor]:
    """Backbone parameters that learn, by name."""
    return {name: p.detach() for name, p in backbone.named_parameters() if p.requires_grad}


def frozen_state(backbone: Backbone) -> dict[str, Tensor]:
    """Everything else of the backbone, by name: it never changes, so it is saved once."""
    trainable = trainable_state(backbone)
    return {name: t.detach() for name, t in backbone.state_dict().items() if name not in trainable}


def load_frozen(backbone: Backbone, folder: Path, elsewhere: Collection[str] = ()) -> None:
    """Puts the weights of snapshot ``folder`` into ``backbone``.

    Raises BadSnapshot unless it has everything frozen but what ``elsewhere`` names: earlier versions took parameters
    that no gradient reaches for some that learn.
    """
    tensors = read_snapshot(folder)[0].get("backbone", {})
    for name, expected in frozen_state(backbone).items():
        tensor = tensors.get(name)
        if tensor is None and name in elsewhere:
            continue
        if tensor is None or tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise BadSnapshot(f"{folder} does not hold {name} of {list(expected.shape)}")
        if not tensor.isfinite().all():
            raise BadSnapshot(f"{folder}: {name} holds NaN or infinity")
    backbone.load_state_dict(tensors, strict=False)


def restore_frozen(backbone: Backbone, folder: Path, expected: str | None, report: Callable[[str], None]) -> str:
    """Puts the run's own frozen weights from ``folder`` into ``backbone``; returns their digest.

    The file of --model.checkpoint may have changed or gone since; when ``folder`` is damaged instead, what was just
    built serves if it has the digest ``expected``. Raises BadSnapshot when neither does.
    """
    try:
        load_frozen(backbone, folder)
    except BadSnapshot as problem:
        report(f"frozen weights ignored: {problem}")
    digest = weights_sha256(frozen_state(backbone))
    if expected is not None and digest != expected:
        raise BadSnapshot("the frozen weights are lost, and --model.checkpoint does not give them")
    return digest
