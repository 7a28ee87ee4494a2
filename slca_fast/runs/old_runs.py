"""What older versions left in a run folder, read as today's: the only place that guesses a method from its flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slca_fast.metrics import Confusion, TaskResult

TITLES = {
    "seqft": "Seq FT",
    "slowft": "Slow FT",
    "probe": "Probe",
    "joint": "Joint",
    "slca": "SLCA",
    "slcapp": "SLCA++",
}
"""Written names of the methods of runs whose summary has no ``method_title``."""


def with_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with its ``method``, which versions before 0.2 did not write."""
    if "method" in config:
        return dict(config)
    return {**config, "method": _guessed(config), "method_settings": {}}


def _guessed(config: Mapping[str, Any]) -> str:
    def of(*path: str) -> Any:
        value: Any = config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def positive(*path: str) -> bool:
        value = of(*path)
        return isinstance(value, int | float) and value > 0

    if of("align", "epochs") == 0:
        if of("model", "trainable") == "head":
            return "probe"
        sizes = of("tasks", "sizes")
        if of("tasks", "scenario") == "cil" and isinstance(sizes, list) and len(sizes) == 1:
            return "joint"
        return "seqft" if of("optim", "backbone_lr_scale") == 1 else "slowft"
    plus = positive("model", "lora", "rank") or positive("align", "feature_scale") or positive("loss", "rce_weight")
    return "slcapp" if plus and of("align", "mean_scaling") is False else "slca"


def dense_results(results: Sequence[Mapping[str, Any]]) -> tuple[TaskResult, ...]:
    """Results in a checkpoint's state; versions before 0.2 kept them there, each with its dense confusion matrix.

    Raises KeyError, TypeError and ValueError for what no run can have written.
    """
    if not all(isinstance(values, Mapping) for values in results):
        raise ValueError("results are not tables")
    made = [TaskResult.from_dict(values) for values in results]
    if made:
        counts_CC = np.asarray(results[-1]["confusion"], dtype=np.int64)
        if counts_CC.ndim != 2 or counts_CC.shape[0] != counts_CC.shape[1] or (counts_CC < 0).any():
            raise ValueError("results: the last confusion is not a square table of counts")
        true_K, predicted_K = counts_CC.nonzero()
        cell_K3 = np.stack([true_K, predicted_K, counts_CC[true_K, predicted_K]], axis=1)
        made[-1] = dataclasses.replace(made[-1], confusion=Confusion(len(counts_CC), cell_K3))
    return tuple(made)
