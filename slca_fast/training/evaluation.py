"""Accuracy of a classifier on test features of all seen labels."""

from __future__ import annotations

import torch
from torch import Tensor

from slca_fast.metrics import TaskResult
from slca_fast.model.head import LinearClassifier
from slca_fast.tasks import TaskPlan

TOP_K = 5


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
