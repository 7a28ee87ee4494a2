"""Chooses who decodes and augments, and says why."""

from __future__ import annotations

import torch

from slca_fast.config import DataConfig
from slca_fast.data import dali
from slca_fast.data.batch import Source
from slca_fast.data.cache import CacheSource, budget_bytes, decoded_bytes
from slca_fast.data.dali import DaliSource
from slca_fast.data.index import ImageIndex
from slca_fast.data.pillow import PillowSource
from slca_fast.errors import UserError


def open_source(
    index: ImageIndex, config: DataConfig, device: torch.device | str = "cpu", share: float = 0.5
) -> Source:
    """A source of batches of ``index`` by the backend of ``config``; close it when done.

    share: the part of the cache budget it may take; a run opens two sources, train and test.
    Raises UserError when a backend was asked for by name and cannot run here.
    """
    device = torch.device(device)
    if config.backend == "pillow":
        return PillowSource(index, config)
    if config.backend == "dali":
        return DaliSource(index, config, device)
    if config.backend == "cache" and config.cache == "off":
        raise UserError("--data.backend is 'cache' but --data.cache is 'off': give auto, gpu or host")
    if config.cache == "off":
        return _streaming(index, config, device)
    return _cached(index, config, device, share)


def _streaming(index: ImageIndex, config: DataConfig, device: torch.device) -> Source:
    if device.type != "cuda":
        return PillowSource(index, config, "streams on the CPU without any dependency")
    missing = dali.why_not()
    if missing:
        return PillowSource(index, config, missing)
    return DaliSource(index, config, device, "decodes on the GPU")


def _cached(index: ImageIndex, config: DataConfig, device: torch.device, share: float) -> Source:
    if config.cache == "gpu" and device.type != "cuda":
        raise UserError(f"--data.cache is 'gpu' but the run is on {device}: give host, or a GPU")
    place = torch.device("cpu") if config.cache == "host" else device
    need, budget = int(decoded_bytes(index).sum()), int(budget_bytes(config, place) * share)
    where = "GPU" if place.type == "cuda" else "host"
    fits = "all fit" if need <= budget else "a task that does not fit is streamed"
    reason = f"{index.num_images} images, {need / 1e9:.2f} GB decoded; {budget / 1e9:.2f} GB of {where} memory: {fits}"
    return CacheSource(index, config, place, budget, _streaming(index, config, device), reason)
