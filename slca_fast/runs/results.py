"""Accuracies of finished tasks: each is written once, into two files of lines that carry their own digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slca_fast import files
from slca_fast.metrics import Confusion, TaskResult
from slca_fast.runs.snapshot import BadSnapshot


class ResultsFile:
    """``results.jsonl`` and its copy in a run's ``checkpoints`` folder, one line a task.

    A checkpoint needs the lines of the tasks before its position; any later ones are of a run that died after them.
    """

    def __init__(self, checkpoints: Path) -> None:
        self._paths = checkpoints / "results.jsonl", checkpoints / "results-copy.jsonl"

    def append(self, task: int, result: TaskResult) -> None:
        """Adds the line of ``task`` to both files and flushes them; raises OSError when the disk does."""
        for path in self._paths:
            log = files.Log(path)
            try:
                log.append(_line(task, result))
                log.sync()
            finally:
                log.close()

    def read(self, num_tasks: int) -> tuple[TaskResult, ...]:
        """Results of the first ``num_tasks`` tasks, without confusions; raises BadSnapshot when one is in no file."""
        found = {task: result for path in self._paths for task, result in _intact(path)}
        for task in range(num_tasks):
            if task not in found:
                raise BadSnapshot(f"the results of task {task + 1} are lost ({self._paths[0].name} and its copy)")
        return tuple(found[task] for task in range(num_tasks))

    def replace(self, results: Sequence[TaskResult]) -> None:
        """Makes both files hold just ``results``, so that each is whole again; one that does stays untouched."""
        data = "".join(f"{_line(task, result)}\n" for task, result in enumerate(results)).encode()
        for path in self._paths:
            if not path.is_file() or path.read_bytes() != data:
                files.replace_bytes(path, data)


def _line(task: int, result: TaskResult) -> str:
    values = {"task": task, **result.as_dict()}
    return json.dumps({"sha256": _digest(values), **values}, allow_nan=False)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _intact(path: Path) -> Iterator[tuple[int, TaskResult]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            values = json.loads(line)
            if values.pop("sha256") == _digest(values):
                task = values.pop("task")
                result = TaskResult.from_dict(values)
                if type(task) is int and len(result.per_task) == task + 1:
                    yield task, result
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue


def confusion_tensors(confusion: Confusion) -> dict[str, Tensor]:
    """The newest task's confusion, for a checkpoint."""
    return {"cells": torch.from_numpy(confusion.cell_K3), "num_classes": torch.tensor(confusion.num_classes)}


def confusion_of(tensors: Mapping[str, Tensor], most: int) -> Confusion:
    """The inverse of ``confusion_tensors``; raises BadSnapshot for what no run of ``most`` classes can have written."""
    cells, num_classes = tensors.get("cells"), tensors.get("num_classes")
    if cells is None or num_classes is None or not cells.dtype == num_classes.dtype == torch.int64 or num_classes.dim():
        raise BadSnapshot("confusion.safetensors does not hold cells and num_classes")
    cell_K3, classes = cells.numpy(), int(num_classes)
    if not 0 < classes <= most:
        raise BadSnapshot(f"confusion.safetensors says {classes} classes, the run has {most}")
    if cell_K3.ndim != 2 or cell_K3.shape[1] != 3 or (cell_K3 < 0).any() or (cell_K3[:, :2] >= classes).any():
        raise BadSnapshot(f"confusion.safetensors does not hold the cells of {classes} classes")
    return Confusion(classes, cell_K3[np.lexsort((cell_K3[:, 1], cell_K3[:, 0]))])
