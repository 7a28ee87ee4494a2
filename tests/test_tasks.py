"""Class order, task boundaries and labels against numbers written down by hand or by numpy's legacy generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slca_fast.errors import UserError
from slca_fast.tasks import class_order, plan_tasks, task_sizes


@pytest.mark.parametrize("seed", [1993, 1996, 1997])
@pytest.mark.parametrize("num_classes", [100, 196, 200, 345])
def test_class_order_is_the_legacy_one(seed: int, num_classes: int) -> None:
    np.random.seed(seed)
    assert class_order(num_classes, seed) == tuple(np.random.permutation(num_classes))


def test_class_order_of_seed_1993_is_the_published_cifar100_order() -> None:
    # The first entries of the order that iCaRL-style code bases print for seed 1993 on 100 classes.
    assert class_order(100, 1993)[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)


def test_sizes_of_cars196_end_with_the_remainder() -> None:
    assert task_sizes(196, 20, 20) == (20,) * 9 + (16,)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 300))
def test_sizes_always_cover_the_classes(initial: int, increment: int, num_classes: int) -> None:
    if initial > num_classes:
        with pytest.raises(UserError, match=f"tasks.initial is {initial}"):
            task_sizes(num_classes, initial, increment)
        return
    sizes = task_sizes(num_classes, initial, increment)
    assert sum(sizes) == num_classes and sizes[0] == initial
    assert all(size == increment for size in sizes[1:-1]) and min(sizes) >= 1


def test_sizes_that_do_not_sum_are_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"tasks.sizes \[3, 4\] sums to 7 but the data set has 10"):
        task_sizes(10, 2, 2, (3, 4))


def test_labels_are_positions_in_the_class_order() -> None:
    plan = plan_tasks(6, seed=1993, sizes=(2, 1, 3))
    assert plan.offsets == (0, 2, 3, 6)
    assert plan.task_of_label.tolist() == [0, 0, 1, 2, 2, 2]
    labels = plan.labels_of(np.arange(6))
    assert [plan.class_order[label] for label in labels] == list(range(6))


def test_domain_incremental_labels_are_domain_and_class_pairs() -> None:
    plan = plan_tasks(3, seed=1, scenario="dil", shuffle=False, num_domains=2)
    assert plan.sizes == (3, 3)
    assert plan.labels_of(np.array([0, 2, 1]), np.array([0, 0, 1])).tolist() == [0, 2, 4]
    assert plan.class_of_label.tolist() == [0, 1, 2, 0, 1, 2]


def test_domain_incremental_needs_domains() -> None:
    with pytest.raises(UserError, match="needs a data set with domains"):
        plan_tasks(3, seed=1, scenario="dil")
