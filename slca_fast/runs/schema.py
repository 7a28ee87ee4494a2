"""What the files that reports read may hold: types, ranges and lengths of every field. Other fields are left out."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict, TypeVar

import msgspec
from msgspec import Meta

MOST_TASKS = 10_000
MOST_CLASSES = 1_000_000
MOST_TASKS_DRAWN = 2_000
"""Of the accuracy matrix, whose size is the square."""
MOST_COUNT = 2**53
MOST_BYTES, MOST_CONFIG_BYTES = 2**27, 2**20
"""Of each of these files."""

Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
Measured = Number | None
Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=MOST_COUNT)]
Text = Annotated[str, Meta(max_length=10_000)]
Curve = Annotated[list[Percent | None], Meta(max_length=MOST_TASKS)]
Matrix = Annotated[list[Curve], Meta(max_length=MOST_TASKS)]
Words = Annotated[dict[Text, Text | Number | bool | None], Meta(max_length=100)]
Problems = list[Text | Words]


class DataProblems(TypedDict, total=False):
    """``data_problems`` of a summary."""

    quarantined: Count | None
    classes_without_images: Annotated[list[Text], Meta(max_length=MOST_CLASSES)] | None


class Summary(TypedDict, total=False):
    """``summary.json``; beside these fields it has the numbers of ``metrics.METRICS``."""

    status: Text
    preset: Text | None
    method: Text | None
    method_title: Text | None
    seed: Count | None
    accuracy_curve: Curve | None
    top5_curve: Curve | None
    accuracy_matrix: Matrix | None
    task_sizes: Annotated[list[Annotated[int, Meta(ge=1, le=MOST_CLASSES)]], Meta(max_length=MOST_TASKS)] | None
    class_order: Annotated[list[Count], Meta(max_length=MOST_CLASSES)] | None
    class_names: Annotated[list[Text], Meta(max_length=MOST_CLASSES)] | None
    phase_seconds: Annotated[dict[Text, Number | None], Meta(max_length=100)] | None
    backends: Words | None
    backend_reasons: Words | None
    versions: Words | None
    device: Text | None
    cpu_threads: Count | None
    precision: Text | None
    weights_sha256: Text | None
    data_problems: DataProblems | None


Task = Annotated[int, Meta(ge=0, lt=MOST_TASKS)]


class _OfEpoch(TypedDict):
    task: Task
    epoch: Count


class Epoch(_OfEpoch, total=False):
    """A line of ``metrics.jsonl`` on an epoch of stage 1 or of the alignment."""

    event: str
    loss: Number | None
    images_per_second: Number | None


class _OfTask(TypedDict):
    task: Task


class TaskDone(_OfTask, total=False):
    """A line of ``metrics.jsonl`` on a finished task."""

    event: str
    accuracy: Percent | None
    top5: Percent | None
    per_task: Curve | None


EVENTS = {"epoch": Epoch, "align": Epoch, "task": TaskDone}
T = TypeVar("T")


class Unfit(ValueError):
    """A value that its field cannot have; says what was expected, and where."""


def fitting(value: Any, hint: type[T] | Any) -> T:
    """``value`` as a value of type ``hint``, without fields that it does not name; raises Unfit."""
    try:
        return msgspec.convert(value, hint)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise Unfit(str(error)[:200]) from error
