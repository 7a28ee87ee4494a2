"""Data and weights that travel with the package: handwritten digits, and a small ViT that knows letters."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["embedded_weights_info", "embedded_weights_path", "write_digits"]

_HERE = Path(__file__).resolve().parent


def embedded_weights_path() -> Path:
    """The shipped float16 safetensors file (timm names, no classification head)."""
    return _HERE / "vit_letters.safetensors"


def embedded_weights_info() -> dict:
    """What the weights are: `model_name`, `model_kwargs`, `mean`, `std` and how they were made."""
    return json.loads((_HERE / "vit_letters.json").read_text(encoding="utf-8"))


def write_digits(root: str | Path) -> Path:
    """Write the digits as an image folder; see `slca_fast.embedded.digits.write_digits`."""
    from .digits import write_digits as write

    return write(root)
