"""Accuracy of a classifier on test features of all seen labels."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from slca_fast.metrics import Confusion, TaskResult
from slca_fast.tasks import TaskPlan

TOP_K = 5


class Scores(Protocol):
    """What is evaluated: a classifier of all labels seen."""

    @property
    def task_sizes(self) -> tuple[int, ...]:
        """Number of labels of every task seen."""
        ...

    def scores(self, features_ND: Tensor) -> Tensor:
        """``[N, C]``, the larger the likelier."""
        ...


def class_scores(scores_NL: Tensor, plan: TaskPlan) -> Tensor:
    """Scores ``[N, seen classes]`` from those of labels: in DIL the maximum over the domains' heads."""
    if plan.scenario == "cil":
        return scores_NL
    return scores_NL.view(len(scores_NL), -1, plan.num_classes).amax(dim=1)


def evaluate(classifier: Scores, features_ND: Tensor, label_N: Tensor, plan: TaskPlan) -> TaskResult:
    """Metrics of ``classifier`` on test features of all seen labels."""
    scores = class_scores(classifier.scores(features_ND), plan)
    class_N = torch.as_tensor(plan.class_of_label, device=label_N.device)[label_N]
    top = scores.topk(min(TOP_K, scores.shape[1]), dim=1).indices
    hit_N = top[:, 0] == class_N
    task_N = torch.as_tensor(plan.task_of_label, device=label_N.device)[label_N]
    num_tasks = len(classifier.task_sizes)
    hits = torch.bincount(task_N, weights=hit_N.double(), minlength=num_tasks)
    totals = torch.bincount(task_N, minlength=num_tasks)
    return TaskResult(
        accuracy=100 * hit_N.double().mean().item(),
        top5=100 * (top == class_N[:, None]).any(1).double().mean().item(),
        per_task=tuple(None if n == 0 else value for value, n in zip((100 * hits / totals).tolist(), totals.tolist())),
        confusion=Confusion.counted(class_N.cpu().numpy(), top[:, 0].cpu().numpy(), scores.shape[1]),
    )
