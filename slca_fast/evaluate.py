"""Features of images under the test transform, and the field's metrics on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slca_fast.data.stream import ImageSet
from slca_fast.distributed import ALONE, Ranks
from slca_fast.errors import UserError
from slca_fast.gaussians import ClassGaussians
from slca_fast.model.backbone import Backbone, autocast
from slca_fast.model.head import LinearClassifier
from slca_fast.tasks import TaskPlan

TOP_K = 5
_MOST_NAMED = 20


class StoppedPass(Exception):
    """A stop was asked for while features were being extracted; nothing of the pass is kept."""


class NonFiniteFeatures(UserError):
    """Features became NaN or infinite; names the images."""


def extract_features(
    backbone: Backbone,
    images: ImageSet,
    precision: str,
    on_step: Callable[[int], None] = lambda num_images: None,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """Features (float32 ``[N, D]``) and labels (int64 ``[N]``) of all ``images`` under the test transform.

    On the backbone's device, in the order of the sample ids; the model is left in eval mode. The ranks share the
    fixed chunks and all get everything: the same bits, whatever their number. Raises StoppedPass on all ranks when
    ``should_stop`` says so on one, NonFiniteFeatures naming the images.
    """
    device = next(backbone.parameters()).device
    backbone.eval()
    chunks = images.chunks()
    features: list[Tensor | None] = []
    ids: list[Tensor | None] = []
    stopped = False
    with torch.no_grad(), autocast(precision, device), backbone.unchanged():
        for batch in images.test_batches(chunks[ranks.rank :: ranks.size]):
            features.append(None if batch is None else _features(backbone, batch.images.to(device, non_blocking=True)))
            ids.append(None if batch is None else batch.sample_id_B)
            on_step(0 if batch is None else len(batch.label_B))
            if stopped := should_stop():
                break
    if ranks.any(stopped):
        raise StoppedPass
    features_ND = torch.cat(ranks.gather_chunks(features, len(chunks)))
    id_N = torch.cat(ranks.gather_chunks(ids, len(chunks))).numpy()
    finite_N = features_ND.isfinite().all(1).cpu().numpy()
    if not finite_N.all():
        raise NonFiniteFeatures(
            f"the features of {(~finite_N).sum()} of {len(id_N)} images are NaN or infinite: the model has diverged, "
            f"or these images hold something odd: {images.files(id_N[~finite_N][:_MOST_NAMED])}"
        )
    return features_ND, torch.from_numpy(images.index.label_N[id_N]).to(device)


def _features(backbone: Backbone, images: Tensor) -> Tensor:
    """Features ``[B, D]`` float32; where the device's memory does not suffice, of one half after the other."""
    try:
        return backbone(images).float()
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    # Outside the handler, whose traceback would keep the failed pass's tensors alive.
    torch.cuda.empty_cache()
    return torch.cat([_features(backbone, half) for half in images.tensor_split(2)])


def measure_classes(
    backbone: Backbone,
    images: ImageSet,
    ridge: float,
    precision: str,
    on_step: Callable[[int], None] = lambda num_images: None,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> ClassGaussians:
    """Gaussians of the images' labels (class statistics after stage 1): the same bits on any number of ranks."""
    features, labels = extract_features(backbone, images, precision, on_step, ranks, should_stop)
    gaussians = ClassGaussians(backbone.feature_dim, ridge=ridge)
    gaussians.update(features, labels)
    return gaussians


@dataclass(frozen=True)
class TaskResult:
    """Accuracy after one task."""

    accuracy: float
    """Top-1 over all seen classes' test images, percent."""
    top5: float
    """Top-5 likewise."""
    per_task: tuple[float, ...]
    """Top-1 on each seen task's test images: one row of the accuracy matrix R."""
    confusion: np.ndarray = field(repr=False)
    """Images by (true, predicted) class position, int64 ``[classes, classes]``."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "accuracy": self.accuracy,
            "top5": self.top5,
            "per_task": list(self.per_task),
            "confusion": self.confusion.tolist(),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TaskResult:
        """The inverse of ``as_dict``."""
        return TaskResult(
            values["accuracy"],
            values["top5"],
            tuple(values["per_task"]),
            np.asarray(values["confusion"], dtype=np.int64),
        )


def class_scores(logits_NL: Tensor, plan: TaskPlan) -> Tensor:
    """Scores ``[N, seen classes]`` from label logits: in DIL the maximum over the domains' heads."""
    if plan.scenario == "cil":
        return logits_NL
    return logits_NL.view(len(logits_NL), -1, plan.num_classes).amax(dim=1)


def evaluate(classifier: LinearClassifier, features_ND: Tensor, label_N: Tensor, plan: TaskPlan) -> TaskResult:
    """Metrics of ``classifier`` on test features of all seen labels."""
    scores = class_scores(classifier.logits(features_ND), plan)
    class_N = torch.as_tensor(plan.class_of_label, device=label_N.device)[label_N]
    top = scores.topk(min(TOP_K, scores.shape[1]), dim=1).indices
    hit_N = top[:, 0] == class_N
    task_N = torch.as_tensor(plan.task_of_label, device=label_N.device)[label_N]
    num_tasks = len(classifier.task_sizes)
    hits = torch.bincount(task_N, weights=hit_N.double(), minlength=num_tasks)
    totals = torch.bincount(task_N, minlength=num_tasks)
    confusion = torch.bincount(class_N * scores.shape[1] + top[:, 0], minlength=scores.shape[1] ** 2)
    return TaskResult(
        accuracy=100 * hit_N.double().mean().item(),
        top5=100 * (top == class_N[:, None]).any(1).double().mean().item(),
        per_task=tuple((100 * hits / totals).tolist()),
        confusion=confusion.view(scores.shape[1], scores.shape[1]).cpu().numpy(),
    )


def summary_metrics(results: list[TaskResult]) -> dict[str, object]:
    """Last, Inc, forgetting and backward transfer of a (possibly unfinished) stream, in percent.

    With R[t, k] the accuracy on task k after task t and T tasks: forgetting is the mean over k < T-1 of
    ``max_{t < T-1} R[t, k] - R[T-1, k]``, backward transfer the mean over k < T-1 of ``R[T-1, k] - R[k, k]``.
    """
    matrix = accuracy_matrix(results)
    last = len(results) - 1
    old = range(last)
    return {
        "last_accuracy": results[-1].accuracy,
        "average_incremental_accuracy": float(np.mean([result.accuracy for result in results])),
        "forgetting": float(np.mean([np.nanmax(matrix[:last, k]) - matrix[last, k] for k in old])) if last else 0.0,
        "backward_transfer": float(np.mean([matrix[last, k] - matrix[k, k] for k in old])) if last else 0.0,
        "accuracy_curve": [result.accuracy for result in results],
        "top5_curve": [result.top5 for result in results],
        "accuracy_matrix": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
    }


def accuracy_matrix(results: list[TaskResult]) -> np.ndarray:
    """R ``[T, T]`` in percent; NaN above the diagonal."""
    matrix = np.full((len(results), len(results)), np.nan)
    for task, result in enumerate(results):
        matrix[task, : task + 1] = result.per_task
    return matrix
