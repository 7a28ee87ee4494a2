"""Chooses who decodes and augments."""

from __future__ import annotations

import torch

from slca_fast.config import DataConfig
from slca_fast.data.batch import Source
from slca_fast.data.index import ImageIndex


def open_source(index: ImageIndex, config: DataConfig, device: torch.device | str = "cpu") -> Source:
    """A source of batches of ``index`` by the backend of ``config``; close it when done.

    Raises UserError when a backend was asked for by name and cannot run here.
    """
    from slca_fast.data.pillow import PillowSource

    return PillowSource(index, config)
