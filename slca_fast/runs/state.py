"""A run's state besides its tensors: one value, written into every checkpoint and read back here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slca_fast.metrics import TaskResult
from slca_fast.runs.old_runs import dense_results, with_method
from slca_fast.runs.snapshot import BadSnapshot

MOST = 2**31
"""What no count of tasks, classes, epochs or steps exceeds."""


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
    """What a checkpoint says besides the weights. Results of finished tasks are in ``ResultsFile``."""

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
    clock: dict[str, Any]
    """``Clock.to_dict``."""
    metrics_bytes: int
    """Length of metrics.jsonl."""
    attention: str | None
    blocks: str | None
    """Who computed: what rounds alike is taken again on resume."""
    domain_names: tuple[str, ...] | None = None
    """Of every task in domain-incremental learning, else empty; None where a version before 0.2 did not say."""
    results: tuple[TaskResult, ...] | None = None
    """Of the finished tasks, where a version before 0.2 wrote them here."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the clock's among them."""
        assert self.results is None
        names = [field.name for field in dataclasses.fields(self) if field.name != "results"]
        values = {name: getattr(self, name) for name in names}
        clock = values.pop("clock")
        return {
            **values,
            **clock,
            "position": dataclasses.asdict(self.position),
            "class_names": list(self.class_names),
            "domain_names": None if self.domain_names is None else list(self.domain_names),
            "class_order": list(self.class_order),
            "task_sizes": list(self.task_sizes),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RunState:
        """The inverse of ``to_dict``, also for older versions; raises BadSnapshot for what no run can have written."""
        try:
            return _checked(values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BadSnapshot(f"state.json is not a run's ({type(error).__name__}: {str(error)[:200]})") from error


def _checked(values: Mapping[str, Any]) -> RunState:
    names = tuple(_text(name, "class_names") for name in _list(values, "class_names"))
    recorded = None if values.get("domain_names") is None else _list(values, "domain_names")
    domains = None if recorded is None else tuple(_text(name, "domain_names") for name in recorded)
    order = tuple(_count(c, "class_order") for c in _list(values, "class_order"))
    sizes = tuple(_count(size, "task_sizes", least=1) for size in _list(values, "task_sizes"))
    if sorted(order) != list(range(len(names))):
        raise ValueError(f"class_order does not order the {len(names)} class_names")
    if len(names) == 0 or sum(sizes) % len(names) != 0:
        raise ValueError(f"task_sizes do not share out {len(names)} classes")
    if domains and not len(domains) == len(set(domains)) == len(sizes):
        raise ValueError(f"domain_names are not those of {len(sizes)} tasks")
    position = _position(values["position"])
    if position.task > len(sizes):
        raise ValueError(f"position.task is {position.task} of {len(sizes)} tasks")
    if not isinstance(values["config"], Mapping):
        raise ValueError("config is not a table")
    results = dense_results(_list(values, "results")) if "results" in values else None
    if results is not None and [len(result.per_task) for result in results] != list(range(1, position.task + 1)):
        raise ValueError(f"results are not those of {position.task} tasks")
    return RunState(
        position=position,
        preset=_text(values["preset"], "preset"),
        config=with_method(values["config"]),
        data_sha256=_optional_text(values, "data_sha256"),
        frozen_sha256=_optional_text(values, "frozen_sha256"),
        num_ranks=_count(values.get("num_ranks", 1), "num_ranks", least=1),
        class_names=names,
        domain_names=domains,
        class_order=order,
        task_sizes=sizes,
        clock=_clock(values),
        metrics_bytes=_count(values["metrics_bytes"], "metrics_bytes", most=2**53),
        attention=_optional_text(values, "attention"),
        blocks=_optional_text(values, "blocks"),
        results=results,
    )


def _position(values: Any) -> Position:
    if not isinstance(values, Mapping) or values.keys() - {"task", "epoch", "step", "loss_sum"}:
        raise ValueError("position does not hold task, epoch, step and loss_sum")
    counts = {name: _count(values.get(name, 0), f"position.{name}") for name in ("epoch", "step")}
    loss_sum = _number(values.get("loss_sum", 0.0), "position.loss_sum")
    return Position(_count(values["task"], "position.task"), **counts, loss_sum=loss_sum)


def _clock(values: Mapping[str, Any]) -> dict[str, Any]:
    seconds = values["seconds"]
    if not isinstance(seconds, Mapping):
        raise ValueError("seconds is not a table of phases")
    kept = ("train_seconds", "checkpoint_seconds", "exchange_seconds")
    return {
        "seconds": {str(phase): _number(value, f"seconds.{phase}") for phase, value in seconds.items()},
        "total_seconds": _number(values["total_seconds"], "total_seconds"),
        "trained_images": _count(values["trained_images"], "trained_images", most=2**53),
        **{name: _number(values[name], name) for name in kept if name in values},
    }


def _list(values: Mapping[str, Any], field: str) -> list[Any]:
    if not isinstance(values[field], list):
        raise ValueError(f"{field} is {type(values[field]).__name__}, not a list")
    return values[field]


def _count(value: Any, field: str, least: int = 0, most: int = MOST) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{field} is {str(value)[:40]!r}, not a whole number from {least} to {most}")
    return value


def _number(value: Any, field: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{field} is {str(value)[:40]!r}, not a finite number")
    return float(value)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field} holds {type(value).__name__}, not text")
    return value


def _optional_text(values: Mapping[str, Any], field: str) -> str | None:
    return None if values.get(field) is None else _text(values[field], field)
