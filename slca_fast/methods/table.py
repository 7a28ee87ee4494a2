"""The table of methods: a new one costs a file beside this and a line here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slca_fast.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from slca_fast.methods.base import Method


@dataclass(frozen=True)
class About:
    """What people read about a method; its class is imported only when it is used."""

    title: str
    """As papers write it."""
    summary: str
    """What it does, in one line."""
    paper: str
    stores: str
    """What it remembers of finished tasks."""
    home: str
    """``module:Class`` below slca_fast.methods."""


_GAUSSIANS = "mean and covariance of every class"
METHODS: dict[str, About] = {
    "seqft": About("Seq FT", "sequential fine-tuning, one learning rate for all", "-", "nothing", "finetune:SeqFT"),
    "slowft": About("Slow FT", "sequential fine-tuning, slow backbone", "2303.05118", "nothing", "finetune:SlowFT"),
    "probe": About("Probe", "one linear head per task on a frozen backbone", "-", "nothing", "finetune:Probe"),
    "joint": About("Joint", "all classes as one task: the upper bound", "-", "nothing", "finetune:Joint"),
    "slca": About("SLCA", "slow learner, alignment with scaled means", "2303.05118", _GAUSSIANS, "slca:SLCA"),
    "slcapp": About("SLCA++", "slow learner, alignment with scaled samples", "2408.08295", _GAUSSIANS, "slca:SLCApp"),
    "ncm": About("NCM", "slow learner, nearest class mean", "1611.07725", "mean of every class", "ncm:NCM"),
}


def method_class(name: str) -> type[Method]:
    """The class of method ``name``; raises UserError for a name that no method has."""
    if name not in METHODS:
        raise UserError(
            f"--method is {name!r}: give one of {', '.join(METHODS)}{did_you_mean(str(name), list(METHODS))}"
        )
    module, _, attribute = METHODS[name].home.partition(":")
    return getattr(importlib.import_module(f"slca_fast.methods.{module}"), attribute)
