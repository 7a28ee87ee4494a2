"""Metrics on a matrix made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slca_fast.metrics import TaskResult, summary_metrics
from slca_fast.model.head import LinearClassifier
from slca_fast.tasks import TaskPlan
from slca_fast.training.evaluation import evaluate


def result(accuracy: float, *per_task: float) -> TaskResult:
    return TaskResult(accuracy, 100.0, per_task, np.zeros((1, 1), dtype=np.int64))


def test_last_inc_forgetting_and_backward_transfer_by_hand() -> None:
    metrics = summary_metrics([result(90, 90), result(75, 70, 80), result(60, 50, 85, 45)])
    assert metrics["last_accuracy"] == 60
    assert metrics["average_incremental_accuracy"] == pytest.approx((90 + 75 + 60) / 3)
    # Task 0 fell from its best 90 to 50, task 1 rose from 80 to 85: (40 - 5) / 2.
    assert metrics["forgetting"] == pytest.approx((40 - 5) / 2)
    assert metrics["backward_transfer"] == pytest.approx((-40 + 5) / 2)
    assert metrics["accuracy_matrix"] == [[90, None, None], [70, 80, None], [50, 85, 45]]


def test_forgetting_takes_the_best_before_the_last_task() -> None:
    metrics = summary_metrics([result(0, 60), result(0, 95, 10), result(0, 90, 10, 10)])
    assert metrics["forgetting"] == pytest.approx(((95 - 90) + 0) / 2)


def test_one_task_forgets_nothing() -> None:
    metrics = summary_metrics([result(88, 88)])
    assert metrics["forgetting"] == 0 and metrics["backward_transfer"] == 0


def test_accuracy_is_over_images_not_over_tasks() -> None:
    plan = TaskPlan("cil", (2, 0, 1), (1, 2))
    classifier = LinearClassifier(torch.eye(3), torch.zeros(3), (1, 2))
    features = torch.eye(3)[[0, 0, 0, 1, 2, 2]]
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    outcome = evaluate(classifier, features, labels, plan)
    assert outcome.accuracy == pytest.approx(100 * 5 / 6)
    assert outcome.per_task == pytest.approx((100.0, 100 * 2 / 3))
    assert outcome.top5 == 100
    assert outcome.confusion.tolist() == [[3, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_domain_incremental_takes_the_best_domains_head() -> None:
    plan = TaskPlan("dil", (0, 1), (2, 2))
    weight = torch.tensor([[1.0, 0], [0, 1], [3, 0], [0, 0]])
    classifier = LinearClassifier(weight, torch.zeros(4), (2, 2))
    # Class 0 wins through domain 1's head (3 > 1) although domain 0's head prefers class 1.
    outcome = evaluate(classifier, torch.tensor([[1.0, 2.0], [0.1, 2.0]]), torch.tensor([2, 1]), plan)
    assert outcome.accuracy == 100
    assert outcome.per_task == (100.0, 100.0)


def test_results_survive_json() -> None:
    before = TaskResult(50.0, 60.0, (50.0, 40.0), np.array([[1, 2], [3, 4]]))
    after = TaskResult.from_dict(before.as_dict())
    assert after.per_task == before.per_task and np.array_equal(after.confusion, before.confusion)
