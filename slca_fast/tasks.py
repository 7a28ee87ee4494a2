"""Class order, task boundaries and the class -> task table of a continual-learning stream.

A *label* is a position in the order in which (domain, class) pairs arrive: in class-incremental learning the
position of the class in the permuted class order, in domain-incremental learning ``domain * num_classes + class``.
Heads, Gaussians and alignment work on labels; accuracy is counted on classes (``class_of_label``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slca_fast.errors import UserError


@dataclass(frozen=True)
class TaskPlan:
    """The stream: which labels arrive with which task."""

    scenario: str
    """``"cil"`` or ``"dil"``."""
    class_order: tuple[int, ...]
    """Class ids (positions in the sorted class names) in the order of their arrival."""
    sizes: tuple[int, ...]
    """Number of labels of every task."""

    @property
    def num_tasks(self) -> int:
        return len(self.sizes)

    @property
    def num_classes(self) -> int:
        return len(self.class_order)

    @property
    def num_labels(self) -> int:
        return sum(self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First label of every task, and the number of labels at the end: ``num_tasks + 1`` numbers."""
        return tuple(int(v) for v in np.concatenate([[0], np.cumsum(self.sizes)]))

    @cached_property
    def task_of_label(self) -> np.ndarray:
        """Task of every label, int64 ``[num_labels]``: the true boundaries, also for unequal tasks."""
        return np.repeat(np.arange(self.num_tasks), self.sizes)

    @cached_property
    def position_of_class(self) -> np.ndarray:
        """Position in the class order of every class id, int64 ``[num_classes]``."""
        position = np.empty(self.num_classes, dtype=np.int64)
        position[list(self.class_order)] = np.arange(self.num_classes)
        return position

    @cached_property
    def class_of_label(self) -> np.ndarray:
        """Position in the class order of the class that every label stands for, int64 ``[num_labels]``."""
        return np.arange(self.num_labels) % self.num_classes

    def labels_of(self, class_N: np.ndarray, domain_N: np.ndarray | None = None) -> np.ndarray:
        """Labels (int64 ``[N]``) of images with class ids ``class_N`` and, in DIL, domains ``domain_N``."""
        label_N = self.position_of_class[np.asarray(class_N, dtype=np.int64)]
        if self.scenario == "dil":
            assert domain_N is not None
            label_N = label_N + self.num_classes * np.asarray(domain_N, dtype=np.int64)
        return label_N

    def num_seen(self, task: int) -> int:
        """Number of labels seen once ``task`` has arrived."""
        return self.offsets[task + 1]


def class_order(num_classes: int, seed: int, shuffle: bool = True) -> tuple[int, ...]:
    """The permuted class ids, as the field makes them: ``RandomState(seed).permutation(num_classes)``."""
    if not shuffle:
        return tuple(range(num_classes))
    return tuple(int(c) for c in np.random.RandomState(seed).permutation(num_classes))


def task_sizes(num_classes: int, initial: int, increment: int, sizes: Sequence[int] | None = None) -> tuple[int, ...]:
    """Number of classes of every task: ``sizes`` when given, else ``initial``, then ``increment`` and the remainder.

    Raises UserError when the tasks do not fit the ``num_classes`` of the data set.
    """
    if sizes is not None:
        if sum(sizes) != num_classes:
            raise UserError(
                f"--tasks.sizes {list(sizes)} sums to {sum(sizes)} but the data set has {num_classes} classes: "
                f"make the sizes sum to {num_classes}"
            )
        return tuple(sizes)
    if initial > num_classes:
        raise UserError(
            f"--tasks.initial is {initial} but the data set has {num_classes} classes: give at most {num_classes}"
        )
    made = [initial]
    while sum(made) < num_classes:
        made.append(min(increment, num_classes - sum(made)))
    return tuple(made)


def plan_tasks(
    num_classes: int,
    seed: int,
    *,
    scenario: str = "cil",
    initial: int = 10,
    increment: int = 10,
    sizes: Sequence[int] | None = None,
    shuffle: bool = True,
    num_domains: int = 1,
) -> TaskPlan:
    """The stream of a data set with ``num_classes`` classes (and ``num_domains`` domains).

    The keywords are the keys of ``tasks`` in the configuration. In DIL every task brings all classes in one more
    domain, so ``initial``, ``increment`` and ``sizes`` do not apply. Raises UserError for tasks that do not fit.
    """
    order = class_order(num_classes, seed, shuffle)
    if scenario == "dil":
        if num_domains < 2:
            raise UserError(
                "--tasks.scenario dil needs a data set with domains: prepare one, or use --tasks.scenario cil"
            )
        return TaskPlan("dil", order, (num_classes,) * num_domains)
    return TaskPlan("cil", order, task_sizes(num_classes, initial, increment, sizes))
