"""What older versions left in a run folder, read as today's: the only place that guesses a method from its flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def classifier_tensors(groups: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """A checkpoint's classifier; versions before 0.2 called the group ``aligned``."""
    return groups.get("classifier", groups.get("aligned"))
