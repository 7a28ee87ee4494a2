"""Small image folders for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from slca_fast.config import DataConfig
from slca_fast.data.index import ImageDataset, load_dataset


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth blobs plus noise: compresses like a photograph, and every pixel differs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


def write_folder(
    root: Path, classes=("ant", "bee", "cat"), per_class=4, splits=("train", "test"), size=None, suffix=".jpg"
) -> Path:
    """<root>/<split>/<class>/<i>.jpg with sizes that vary unless given as (height, width)."""
    seed = 0
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                seed += 1
                height, width = size or (40 + 7 * (seed % 9), 40 + 11 * (seed % 7))
                picture(height, width, seed).save(folder / f"{i}{suffix}")
    return root


def load(root: Path) -> ImageDataset:
    """The data set below ``root``."""
    return load_dataset(DataConfig(root=str(root)))


def tree(root: Path) -> list[str]:
    """Every file below ``root``, sorted."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
