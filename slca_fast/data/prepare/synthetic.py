"""Made-up photographs: learnable classes, domains that look different, JPEGs of realistic size; from a seed.

Each class has a palette, a silhouette and a texture; each image its own background, position, scale, light and noise;
each domain a way of drawing. Image (seed, split, class, domain, i) does not depend on any other.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from slca_fast.data.folder import DOMAIN_FILE
from slca_fast.data.prepare.place import Job, PrepareReport, Progress, finish
from slca_fast.datasets import DATASETS
from slca_fast.errors import UserError, did_you_mean
from slca_fast.files import replace_text

_QUALITY = 92
_TRAIN, _TEST = 0, 1


def prepare_synthetic(
    root: Path,
    *,
    like: str = "imagenet-r",
    scale: float = 0.01,
    seed: int = 0,
    num_classes: int | None = None,
    num_domains: int | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    side: float | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Write a data set shaped like ``like``, with ``scale`` times its images per class (at least 2 and 1).

    num_train, num_test: images per class and domain, instead of the scaled numbers. side: typical size in pixels.
    Raises UserError for numbers that make no data set.
    """
    if like not in DATASETS:
        raise UserError(f"--like is {like!r}: give one of {', '.join(DATASETS)}{did_you_mean(like, DATASETS)}")
    if not 0 < scale <= 1:
        raise UserError(f"--scale is {scale}: give a number in (0, 1]")
    shape = DATASETS[like]
    train_per_class, test_per_class = shape.images_per_class
    domains = (
        shape.domains[:num_domains]
        if num_domains is None or num_domains <= len(shape.domains)
        else (tuple(f"domain{i}" for i in range(num_domains)))
    )
    num_styles = max(len(domains), 1)
    num_classes = num_classes or shape.num_classes
    per_split = {
        "train": num_train or max(2, round(train_per_class * scale / num_styles)),
        "test": num_test or max(1, round(test_per_class * scale / num_styles)),
    }
    side = side or shape.side
    if num_classes < 1 or min(per_split.values()) < 1 or side < 8:
        raise UserError(f"{num_classes} classes, {per_split} images per class, side {side}: too little")
    digits = len(str(num_classes - 1))
    jobs = []
    for split, count in per_split.items():
        for c in range(num_classes):
            for d in range(num_styles):
                for i in range(count):
                    below = f"{domains[d]}/" if domains else ""
                    key = (seed, _TRAIN if split == "train" else _TEST, c, d, i)
                    make = functools.partial(_save, key, side, shape.side_spread)
                    jobs.append(Job(f"{split}/class{c:0{digits}d}/{below}{i:05d}.jpg", make=make))
    if domains:
        names = '", "'.join(domains)
        root.mkdir(parents=True, exist_ok=True)
        replace_text(root / DOMAIN_FILE, f'["{names}"]')
    options = {"like": like, "scale": scale, "seed": seed, "side": side}
    return finish("synthetic", root, jobs, options=options, progress=progress)


def _save(key: tuple[int, ...], side: float, side_spread: float, path: Path) -> None:
    Image.fromarray(picture(key, side, side_spread)).save(path, format="JPEG", quality=_QUALITY)


def picture(key: tuple[int, ...], side: float, side_spread: float) -> np.ndarray:
    """Image of (seed, split, class, domain, number), uint8 [H, W, 3]."""
    seed, _, label, domain, _ = key
    looks, style = np.random.default_rng((seed, 7, label)), np.random.default_rng((seed, 11, domain))
    rng = np.random.default_rng((seed, 13, *key[1:]))
    mean_side = side * np.exp(side_spread * rng.standard_normal())
    aspect = np.exp(0.25 * rng.standard_normal() * (side_spread > 0))
    height, width = (max(8, round(mean_side * factor)) for factor in (aspect**-0.5, aspect**0.5))

    palette_33, silhouette_55 = looks.uniform(30, 225, (3, 3)), looks.standard_normal((5, 5))
    frequency, angle = looks.uniform(4, 14), looks.uniform(0, np.pi)
    palette_33, silhouette_55 = palette_33.astype(np.float32), silhouette_55.astype(np.float32)
    y, x = _object_coordinates(rng, height, width)
    inside = _sampled(silhouette_55, y, x) - 1.2 * (x**2 + y**2) + 0.6
    mask = 1 / (1 + np.exp(-12 * inside))
    stripes = 0.5 + 0.5 * np.sin(
        x * np.float32(np.pi * frequency * np.cos(angle)) + y * np.float32(np.pi * frequency * np.sin(angle))
    )
    body = palette_33[0] + (palette_33[1] - palette_33[0]) * stripes[..., None]
    field = _noise_field(rng, height, width)
    background = _colour(rng, 20, 235) + field[..., None] * _colour(rng, -60, 60)
    pixels = background + mask[..., None] * (body - background)
    pixels += np.exp(-40 * inside**2)[..., None] * 0.5 * (palette_33[2] - pixels)
    pixels = _drawn(pixels, domain, style)
    pixels = pixels * np.float32(rng.uniform(0.75, 1.2)) + 22 * field[..., None]
    pixels += 5 * rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, 3).astype(np.float32)


def _object_coordinates(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in which the object fills about [-1, 1]: shifted, scaled, turned, sometimes mirrored."""
    scale, turn = rng.uniform(1.1, 1.7), rng.normal(0, 0.25)
    centre_y, centre_x = rng.normal(0, 0.15, 2)
    short = min(height, width) / 2
    y = ((np.arange(height) - height / 2) / short - centre_y).astype(np.float32)[:, None] * np.float32(scale)
    x = ((np.arange(width) - width / 2) / short - centre_x).astype(np.float32)[None, :] * np.float32(scale)
    x = x * np.float32(rng.choice((-1, 1)))
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return y * cosine + x * sine, x * cosine - y * sine


def _sampled(grid: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The grid over [-1, 1]^2, bilinear, constant beyond."""
    last = len(grid) - 1
    rows, columns = (np.clip((v + 1) / 2 * last, 0, last - 1e-3) for v in (y, x))
    r, c = rows.astype(int), columns.astype(int)
    fy, fx = rows - r, columns - c
    top = grid[r, c] * (1 - fx) + grid[r, c + 1] * fx
    return top * (1 - fy) + (grid[r + 1, c] * (1 - fx) + grid[r + 1, c + 1] * fx) * fy


def _noise_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise of several octaves, about unit size: what photographs have for a background."""
    field = np.zeros((height, width), dtype=np.float32)
    for cells, strength in ((3, 1.0), (9, 0.5), (27, 0.25), (81, 0.12)):
        coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        field += strength * np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    return field


def _drawn(pixels: np.ndarray, domain: int, style: np.random.Generator) -> np.ndarray:
    """The way domain number ``domain`` draws; 0 draws nothing new."""
    if domain == 0:
        return pixels
    tint, levels = _colour(style, 0.5, 1.3), int(style.integers(3, 7))
    grey = pixels.mean(axis=2, keepdims=True)
    kind = domain % 5
    if kind == 1:
        edges = np.abs(np.gradient(grey[..., 0], axis=0)) + np.abs(np.gradient(grey[..., 0], axis=1))
        return np.repeat(255 - 14 * edges[..., None], 3, axis=2)
    if kind == 2:
        return np.round(pixels * levels / 255) * (255 / levels) * tint
    if kind == 3:
        return grey * tint
    if kind == 4:
        return 255 - pixels * tint
    return np.flip(pixels, axis=2) * tint
