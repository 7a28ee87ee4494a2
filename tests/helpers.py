"""Small real data and models for tests that run the whole program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from slca_fast.cli.config_args import parse_overrides
from slca_fast.config import Config
from slca_fast.methods.presets import PRESETS

TINY_ARGS = [
    "--model.checkpoint",
    "null",
    "--model.kwargs",
    "{img_size: 16, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}",
    "--data.image_size",
    "16",
    "--data.backend",
    "pillow",
    "--optim.epochs",
    "2",
    "--optim.batch_size",
    "8",
    "--align.epochs",
    "2",
    "--align.samples_per_class",
    "16",
    "--checkpoint.every_minutes",
    "0",
]


def write_images(root: Path, num_classes: int = 4, per_class: int = 10, size: int = 16, seed: int = 0) -> Path:
    """An image folder whose classes differ in colour and stripes: learnable in a moment."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", per_class), ("test", max(2, per_class // 2))):
        for c in range(num_classes):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 80, (size, size, 3))
                pixels[:, :: c + 1, c % 3] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return root


def tiny_config(root: Path, output: Path, *extra: str, preset: str = "demo") -> Config:
    """A configuration that trains on ``write_images`` in about a second."""
    args = [*TINY_ARGS, "--data.root", str(root), "--output", str(output), *extra]
    return parse_overrides(PRESETS[preset](), args)


def slca_fast(*args: str, timeout: float = 300, **kwargs) -> subprocess.CompletedProcess:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "slca_fast", *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **kwargs,
    )
