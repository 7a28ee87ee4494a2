"""Optional experiment trackers fed with what metrics.jsonl gets: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from slca_fast.config import TrackConfig
from slca_fast.errors import UserError


class Tracker(Protocol):
    """Receives numbers by name at a step."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``<run>/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        try:
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError:
            raise UserError(
                "--track.tensorboard true: the package tensorboard is not installed; "
                "pip install slca-fast[track], or leave it out"
            ) from None
        self.writer = writer(str(folder / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A wandb run whose id is kept in the run folder, so that a resumed run continues it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError:
            raise UserError(
                "--track.wandb true: the package wandb is not installed; pip install wandb, or leave it out"
            ) from None
        id_file = folder / "wandb_id.txt"
        run_id = id_file.read_text().strip() if id_file.exists() else None
        self.run = wandb.init(
            project="slca-fast", name=folder.name, dir=str(folder), config=dict(config), id=run_id, resume="allow"
        )
        id_file.write_text(self.run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


def open_trackers(config: TrackConfig, folder: Path, run_config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that ``config`` asks for; raises UserError for one that is not installed."""
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(folder))
    if config.wandb:
        trackers.append(WeightsAndBiases(folder, run_config))
    return trackers


def numbers_of(event: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of one metrics.jsonl line under tracker names, e.g. ``epoch/loss`` and ``epoch/lr/head``."""
    numbers = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            numbers |= numbers_of(f"{event}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{event}/{name}"] = float(value)
    return numbers
