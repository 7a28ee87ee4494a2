"""What a checkpoint holds of a run, how it comes back, and which changes forbid going on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slca_fast.runs.snapshot import BadSnapshot, read_snapshot, weights_sha256
from slca_fast.config import Config
from slca_fast.config_file import config_to_dict, flatten
from slca_fast.data.index import ImageDataset
from slca_fast.errors import UserError
from slca_fast.metrics import TaskResult
from slca_fast.model.backbone import Backbone
from slca_fast.model.head import Classifier, LinearClassifier
from slca_fast.tasks import TaskPlan

# These may differ on resume (docs/reliability.md): another device or number of threads can change the last bits of
# what follows, the rest changes nothing. The number of ranks is not even part of the configuration.
MAY_CHANGE = (
    "output",
    "data.root",
    "data.num_workers",
    "data.prefetch",
    "data.hw_decoder_load",
    "data.cache",
    "data.cache_budget_gb",
    "runtime.device",
    "runtime.num_threads",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "track.tensorboard",
    "track.wandb",
    "model.checkpoint",
)


@dataclass(frozen=True)
class Position:
    """Where stage 1 goes on: the task, its epoch (``optim.epochs`` when stage 1 is done) and the batch in it."""

    task: int
    epoch: int
    step: int
    loss_sum: float
    """Sum of the epoch's losses before ``step``."""


@dataclass(frozen=True)
class Progress:
    """What a checkpoint's state says besides the weights."""

    position: Position
    results: list[TaskResult]
    seconds: dict[str, float]
    total_seconds: float
    trained_images: int
    metrics_bytes: int


def saved_progress(state: Mapping[str, Any]) -> Progress:
    """The progress in a checkpoint's ``state``; raises BadSnapshot when it is not what ``Experiment`` writes."""
    try:
        return Progress(
            Position(**state["position"]),
            [TaskResult.from_dict(result) for result in state["results"]],
            {name: float(value) for name, value in state["seconds"].items()},
            float(state["total_seconds"]),
            int(state["trained_images"]),
            int(state["metrics_bytes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadSnapshot(f"its state is not a run's ({type(error).__name__}: {error})") from error


def data_sha256(dataset: ImageDataset) -> str:
    """A digest over the paths, sizes in bytes, labels and domains of both splits."""
    digest = hashlib.sha256()
    for index in (dataset.train, dataset.test):
        digest.update("\n".join((*index.class_names, "", *index.domain_names, "", *index.paths)).encode())
        digest.update(index.num_bytes_N.tobytes())
        digest.update(index.label_N.tobytes())
        digest.update(b"" if index.domain_N is None else index.domain_N.tobytes())
    return digest.hexdigest()


def refuse_changes(state: Mapping[str, Any], config: Config, data_hash: str) -> None:
    """Raises UserError naming the first setting that differs from the run to be continued."""
    before, now = flatten(state["config"]), flatten(config_to_dict(config))
    for key in sorted(before.keys() | now.keys()):
        if key not in MAY_CHANGE and before.get(key) != now.get(key):
            raise UserError(
                f"--{key} is {now.get(key)!r} but the run was started with {before.get(key)!r}; resume with "
                f"the old value, or start a new run in another --output"
            )
    if state.get("data_sha256") not in (None, data_hash):
        raise UserError(
            "--data.root: the images are not those the run was started with (paths, sizes or labels "
            "differ); restore them, or start a new run in another --output"
        )


def trainable_state(backbone: Backbone) -> dict[str, Tensor]:
    """Backbone parameters that learn, by name."""
    return {name: p.detach() for name, p in backbone.named_parameters() if p.requires_grad}


def frozen_state(backbone: Backbone) -> dict[str, Tensor]:
    """Everything else of the backbone, by name: it never changes, so it is saved once."""
    trainable = trainable_state(backbone)
    return {name: t.detach() for name, t in backbone.state_dict().items() if name not in trainable}


def restore_frozen(backbone: Backbone, folder: Path, state: Mapping[str, Any], report: Callable[[str], None]) -> str:
    """Puts the run's own frozen weights from ``folder`` into ``backbone``; returns their digest.

    The file of --model.checkpoint may have changed or gone since; when ``folder`` is damaged instead, what was just
    built serves if it has the digest that the checkpoint names. Raises BadSnapshot when neither does.
    """
    try:
        tensors, _ = read_snapshot(folder)
        backbone.load_state_dict(tensors.get("backbone", {}), strict=False)
    except (BadSnapshot, RuntimeError) as problem:
        report(f"frozen weights ignored: {problem}")
    digest = weights_sha256(frozen_state(backbone))
    if digest != state.get("frozen_sha256", digest):
        raise BadSnapshot("the frozen weights are lost, and --model.checkpoint does not give them")
    return digest


def snapshot_tensors(
    backbone: Backbone,
    classifier: Classifier,
    aligned: LinearClassifier | None,
    optimizer: torch.optim.Optimizer | None,
) -> dict[str, dict[str, Tensor]]:
    """The tensor groups of a checkpoint: ``backbone``, ``heads``, ``aligned`` and ``optimizer`` (each when present)."""
    groups = {"backbone": trainable_state(backbone), "heads": classifier.state_dict()}
    if aligned is not None:
        groups["aligned"] = {"weight": aligned.weight_CD, "bias": aligned.bias_C}
    if optimizer is not None:
        groups["optimizer"] = optimizer_tensors(optimizer)
    return groups


def restore_model(
    tensors: Mapping[str, Mapping[str, Tensor]],
    backbone: Backbone,
    classifier: Classifier,
    plan: TaskPlan,
    device: torch.device,
) -> LinearClassifier | None:
    """Puts a checkpoint's weights into ``backbone`` and the empty ``classifier``; returns the aligned classifier.

    Raises BadSnapshot when they do not fit.
    """
    try:
        parameters = dict(backbone.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors["backbone"].items():
                parameters[name].copy_(tensor)
        num_heads = len(tensors["heads"]) // 2
        for task in range(num_heads):
            classifier.grow(plan.sizes[task], 0, device)
        classifier.load_state_dict(dict(tensors["heads"]))
    except (KeyError, IndexError, RuntimeError) as error:
        raise BadSnapshot(f"its weights are not this model's ({' '.join(str(error).split())[:200]})") from error
    if "aligned" not in tensors:
        return None
    weight = tensors["aligned"]["weight"].to(device)
    sizes, total = [], 0
    for size in plan.sizes:
        if total < len(weight):
            sizes.append(size)
            total += size
    return LinearClassifier(weight, tensors["aligned"]["bias"].to(device), tuple(sizes))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter tensors as ``"<parameter index>.<name>"``."""
    return {
        f"{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts ``optimizer_tensors`` back into a freshly made optimizer."""
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
