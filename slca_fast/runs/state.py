"""A run's state besides its tensors: one value, written into every checkpoint and read back here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slca_fast.metrics import TaskResult
from slca_fast.runs.old_runs import with_method
from slca_fast.runs.snapshot import BadSnapshot


@dataclass(frozen=True)
class Position:
    """Where stage 1 goes on: the task, its epoch (``optim.epochs`` when stage 1 is done) and the batch in it."""

    task: int
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Sum of the epoch's losses before ``step``."""

    @property
    def begins_task(self) -> bool:
        return self.epoch == 0 and self.step == 0


@dataclass(frozen=True)
class RunState:
    """What a checkpoint says besides the weights."""

    position: Position
    preset: str
    config: dict[str, Any]
    """The run's configuration as ``config_to_dict`` makes it."""
    data_sha256: str | None
    frozen_sha256: str | None
    """Of the weights that never change, in a snapshot of their own; None in checkpoints of early versions."""
    num_ranks: int
    class_names: tuple[str, ...]
    class_order: tuple[int, ...]
    task_sizes: tuple[int, ...]
    """Of all tasks, finished or not."""
    results: tuple[TaskResult, ...]
    """Of the finished tasks."""
    clock: dict[str, Any]
    """``Clock.to_dict``."""
    metrics_bytes: int
    """Length of metrics.jsonl."""
    attention: str | None
    blocks: str | None
    """Who computed: what rounds alike is taken again on resume."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the clock's among them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **values,
            **values.pop("clock"),
            "position": dataclasses.asdict(self.position),
            "class_names": list(self.class_names),
            "class_order": list(self.class_order),
            "task_sizes": list(self.task_sizes),
            "results": [result.as_dict() for result in self.results],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RunState:
        """The inverse of ``to_dict``, also for older versions; raises BadSnapshot for what no run can have written."""
        try:
            return RunState(
                position=Position(**values["position"]),
                preset=str(values["preset"]),
                config=with_method(values["config"]),
                data_sha256=values.get("data_sha256"),
                frozen_sha256=values.get("frozen_sha256"),
                num_ranks=int(values.get("num_ranks", 1)),
                class_names=tuple(str(name) for name in values["class_names"]),
                class_order=tuple(int(c) for c in values["class_order"]),
                task_sizes=tuple(int(size) for size in values["task_sizes"]),
                results=tuple(TaskResult.from_dict(result) for result in values["results"]),
                clock={name: values[name] for name in _CLOCK if name in values},
                metrics_bytes=int(values["metrics_bytes"]),
                attention=values.get("attention"),
                blocks=values.get("blocks"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadSnapshot(f"its state is not a run's ({type(error).__name__}: {error})") from error


_CLOCK = ("seconds", "total_seconds", "trained_images", "train_seconds", "checkpoint_seconds", "exchange_seconds")
