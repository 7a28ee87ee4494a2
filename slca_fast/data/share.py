"""A rank's part of its machine: cores to decode with and memory to keep images in."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from slca_fast.config import DataConfig
from slca_fast.data.cache import budget_bytes
from slca_fast.machine.ranks import Ranks


def share_of_machine(config: DataConfig, ranks: Ranks, device: torch.device) -> DataConfig:
    """``config`` with this rank's share of the machine's cores and memory where the user left them open."""
    if ranks.alone:
        return config
    cores = max(1, len(os.sched_getaffinity(0)) // ranks.local_size)
    gb = config.cache_budget_gb
    if gb is None and (config.cache == "host" or device.type != "cuda"):
        gb = budget_bytes(config, torch.device("cpu")) / 1e9 / ranks.local_size
    return replace(config, num_workers=config.num_workers or cores, cache_budget_gb=gb)
