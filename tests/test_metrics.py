"""Metrics on a matrix made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slca_fast.metrics import (
    METRICS,
    Confusion,
    TaskResult,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    last_accuracy,
    metric_named,
    summary_metrics,
)
from slca_fast.model.head import LinearClassifier
from slca_fast.tasks import TaskPlan
from slca_fast.training.evaluation import evaluate

FUNCTIONS = [metric.function for metric in METRICS if metric.function is not None]


def result(accuracy: float, *per_task: float | None) -> TaskResult:
    return TaskResult(accuracy, 100.0, per_task)


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


def test_one_task_leaves_forgetting_and_transfer_undefined() -> None:
    metrics = summary_metrics([result(88, 88)])
    assert metrics["forgetting"] is None and metrics["backward_transfer"] is None
    assert metrics["last_accuracy"] == 88 and metrics["average_incremental_accuracy"] == 88


def test_nothing_is_defined_before_the_first_task() -> None:
    assert [function((), ()) for function in FUNCTIONS] == [None] * len(FUNCTIONS)


def test_what_was_not_measured_makes_a_mean_undefined_but_for_an_earlier_best() -> None:
    # Task 0: 90, not measured, 50; task 1: 80, then 85.
    curve, matrix = (90.0, None, 60.0), ((90.0,), (None, 80.0), (50.0, 85.0, 45.0))
    assert last_accuracy(curve, matrix) == 60 and average_incremental_accuracy(curve, matrix) is None
    assert forgetting(curve, matrix) == pytest.approx((40 - 5) / 2)
    assert backward_transfer(curve, matrix) == pytest.approx((-40 + 5) / 2)
    unknown_end = (*matrix[:2], (50.0, None, 45.0))
    assert forgetting(curve, unknown_end) is None and backward_transfer(curve, unknown_end) is None
    unknown_start = ((None,), (70.0, 80.0), matrix[2])
    assert forgetting(curve, unknown_start) == pytest.approx((20 - 5) / 2)
    assert backward_transfer(curve, unknown_start) is None
    assert forgetting(curve, ((90.0,), (), ())) is None


def test_a_task_without_test_images_is_not_measured() -> None:
    for absent in (None, float("nan")):
        metrics = summary_metrics([result(90, 90), result(75, 75, absent)])
        assert metrics["accuracy_matrix"] == [[90, None], [75, None]] and metrics["forgetting"] == 15


PERCENT = st.floats(0, 100, allow_subnormal=False)


@given(
    st.integers(2, 12).flatmap(lambda n: st.lists(st.lists(PERCENT, min_size=n, max_size=n), min_size=n, max_size=n))
)
def test_the_functions_are_their_equations_to_the_last_bit(square: list[list[float]]) -> None:
    matrix_TT = np.where(np.tri(len(square), dtype=bool), square, np.nan)
    results = [result(row[0], *row[: t + 1]) for t, row in enumerate(square)]
    metrics, last = summary_metrics(results), len(square) - 1
    assert metrics["last_accuracy"] == square[-1][0]
    assert metrics["average_incremental_accuracy"] == np.mean([row[0] for row in square])
    drops = [np.nanmax(matrix_TT[:last, k]) - matrix_TT[last, k] for k in range(last)]
    assert metrics["forgetting"] == np.mean(drops)
    assert metrics["backward_transfer"] == np.mean([matrix_TT[last, k] - matrix_TT[k, k] for k in range(last)])
    assert metrics["forgetting"] >= -metrics["backward_transfer"] - 1e-9


def test_numbers_as_they_are_written() -> None:
    seconds, memory = metric_named("total_seconds"), metric_named("peak_memory_bytes")
    assert seconds.text(1234.56, 1) == "1,234.6" and seconds.text(None, 1) == "–"
    assert memory.text(3 * 2**29, memory.decimals) == "1.50"
    assert memory.spread_text(2**31, 2**28, 2) == "2.00 ± 0.25"
    assert seconds.spread_text(90.0, None, 0) == "90" and seconds.spread_text(None, None, 0) == "–"


def test_accuracy_is_over_images_not_over_tasks() -> None:
    plan = TaskPlan("cil", (2, 0, 1), (1, 2))
    classifier = LinearClassifier(torch.eye(3), torch.zeros(3), (1, 2))
    features = torch.eye(3)[[0, 0, 0, 1, 2, 2]]
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    outcome = evaluate(classifier, features, labels, plan)
    assert outcome.accuracy == pytest.approx(100 * 5 / 6)
    assert outcome.per_task == pytest.approx((100.0, 100 * 2 / 3))
    assert outcome.top5 == 100
    assert outcome.confusion is not None
    assert list(outcome.confusion.rows()) == [[3, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_domain_incremental_takes_the_best_domains_head() -> None:
    plan = TaskPlan("dil", (0, 1), (2, 2))
    weight = torch.tensor([[1.0, 0], [0, 1], [3, 0], [0, 0]])
    classifier = LinearClassifier(weight, torch.zeros(4), (2, 2))
    # Class 0 wins through domain 1's head (3 > 1) although domain 0's head prefers class 1.
    outcome = evaluate(classifier, torch.tensor([[1.0, 2.0], [0.1, 2.0]]), torch.tensor([2, 1]), plan)
    assert outcome.accuracy == 100
    assert outcome.per_task == (100.0, 100.0)


def test_results_survive_json() -> None:
    before = TaskResult(50.0, 60.0, (50.0, None, 40.0))
    assert TaskResult.from_dict(json.loads(json.dumps(before.as_dict()))) == before


@pytest.mark.parametrize(
    "field, value", [("accuracy", "9"), ("top5", 101), ("top5", True), ("per_task", 3), ("per_task", [float("nan")])]
)
def test_results_that_no_run_wrote_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        TaskResult.from_dict({**TaskResult(50.0, 60.0, (50.0,)).as_dict(), field: value})


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_sparse_confusion_counts_as_a_dense_table_does(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    num_classes, pairs = drawn
    pair_N2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    dense_CC = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(dense_CC, (pair_N2[:, 0], pair_N2[:, 1]), 1)
    sparse = Confusion.counted(pair_N2[:, 0], pair_N2[:, 1], num_classes)
    assert list(sparse.rows()) == dense_CC.tolist() and len(sparse.cell_K3) <= len(pairs)
