"""Throughput of the data backends against torchvision and a DataLoader, which is how the official code reads.

``python -m slca_fast.benchmark.data --json FILE``. One interleaved run: in every round each backend delivers one
epoch of the same made-up JPEGs, all by the same recipe; a ratio is of two times of the same round.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from slca_fast.config import DataConfig
from slca_fast.data import dali
from slca_fast.data.index import ImageIndex, load_dataset
from slca_fast.data.plan import AugmentPlan, epoch_order, train_plan
from slca_fast.data.prepare import prepare
from slca_fast.data.sources import open_source

BASELINE = "torchvision + DataLoader"
_BATCH = 128


class TorchvisionImages(Dataset):
    """Opens, converts and transforms one file per item."""

    def __init__(self, index: ImageIndex, config: DataConfig) -> None:
        from torchvision import transforms

        self._index = index
        self._transform: Callable[[Any], torch.Tensor] = transforms.Compose(
            [
                transforms.RandomResizedCrop(config.image_size, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.mean, config.std),
            ]
        )

    def __len__(self) -> int:
        return self._index.num_images

    def __getitem__(self, sample_id: int) -> tuple[int, torch.Tensor, int]:
        from torchvision.datasets.folder import pil_loader

        image = self._transform(pil_loader(str(self._index.path_of(sample_id))))
        return sample_id, image, int(self._index.label_N[sample_id])


Epoch = Callable[[int], Iterator[int]]
"""Epoch number -> sizes of the batches, as they come."""


def loader_epochs(index: ImageIndex, config: DataConfig, num_workers: int) -> tuple[Epoch, Callable[[], None]]:
    """Epochs of a DataLoader that lives as long as a task, and how to close it."""
    loader = DataLoader(
        TorchvisionImages(index, config),
        batch_size=_BATCH,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    return lambda epoch: (len(images) for _, images, _ in loader), lambda: None


def source_epochs(
    index: ImageIndex, config: DataConfig, device: torch.device | str = "cpu"
) -> tuple[Epoch, Callable[[], None]]:
    """Epochs of one of our sources with batches for ``device``, and how to close it."""
    source = open_source(index, config, device)

    def run(epoch: int) -> Iterator[int]:
        order = epoch_order(0, 0, epoch, np.arange(index.num_images))

        def plan_of(id_B: np.ndarray) -> AugmentPlan:
            sizes = index.height_N[id_B], index.width_N[id_B]
            return train_plan("imagenet-r", config.image_size, 0, 0, epoch, id_B, *sizes)

        batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
        return (len(batch.images) for batch in source.batches(batches, plan_of))

    return run, source.close


def contestants(index: ImageIndex, config: DataConfig) -> dict[str, Callable[[], tuple[Epoch, Callable[[], None]]]]:
    """{name: how to open it}; the baseline first."""
    num_cores = len(os.sched_getaffinity(0))
    backends = {"pillow": "Pillow", "cache": "resident cache", "dali": "DALI on the CPU"}
    if dali.why_not() is not None:
        del backends["dali"]
    return {
        BASELINE: partial(loader_epochs, index, config, num_cores),
        f"{BASELINE}, 8 workers": partial(loader_epochs, index, config, 8),
        **{name: partial(source_epochs, index, replace(config, backend=backend)) for backend, name in backends.items()},
    }


def measure(num_images: int, side: int, image_size: int, rounds: int, folder: Path) -> list[dict]:
    """Rows of the benchmark (see the interfaces of ``slca-fast bench``) from ``rounds`` interleaved rounds.

    "first batch": from nothing open to the first batch of a task. "one epoch": the second and later epochs.
    """
    options = {"num_classes": 4, "num_train": -(-num_images // 4), "num_test": 1, "side": side}
    prepare("synthetic", None, folder, **options)
    config = DataConfig(root=str(folder), image_size=image_size)
    index = load_dataset(config).train
    ways = contestants(index, config)
    first_ms: dict[str, list[float]] = {name: [] for name in ways}
    epoch_ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, opener in ways.items():
            start = time.perf_counter()
            run, close = opener()
            next(run(0))
            first_ms[name].append(1e3 * (time.perf_counter() - start))
            close()
    opened = {name: opener() for name, opener in ways.items()}
    for run, _ in opened.values():
        seen = sum(run(0))
        assert seen == index.num_images
    for epoch in range(1, rounds + 1):
        for name, (run, _) in opened.items():
            start = time.perf_counter()
            seen = sum(run(epoch))
            assert seen == index.num_images
            epoch_ms[name].append(1e3 * (time.perf_counter() - start))
    for _, close in opened.values():
        close()
    shape = f"{index.num_images} JPEGs of about {side} px to {image_size} px"
    return [
        _row(what, name, shape, times[name], times[BASELINE], count)
        for what, times, count in (
            ("first batch", first_ms, min(_BATCH, index.num_images)),
            ("one epoch", epoch_ms, index.num_images),
        )
        for name in ways
    ]


def _row(what: str, name: str, shape: str, times_ms: list[float], baseline_ms: list[float], num_images: int) -> dict:
    ratios = [b / t for b, t in zip(baseline_ms, times_ms)]
    median_ms = statistics.median(times_ms)
    return {
        "suite": "data",
        "name": what,
        "shape": shape,
        "dtype": "float32",
        "backend": name,
        "baseline": BASELINE,
        "median_ms": median_ms,
        "baseline_median_ms": statistics.median(baseline_ms),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "n": len(times_ms),
        "achieved": 1e3 * num_images / median_ms,
        "unit": "images/s",
        "fraction_of_peak": None,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'':<13} {'backend':<36} {'images/s':>9} {'ms':>9} {'ratio':>6}  (min .. max), n"]
    for row in rows:
        times = f"{row['achieved']:9.0f} {row['median_ms']:9.0f} {row['ratio']:6.2f}"
        spread = f"({row['ratio_min']:.2f} .. {row['ratio_max']:.2f}), {row['n']}"
        lines.append(f"{row['name']:<13} {row['backend']:<36} {times}  {spread}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=400)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the made-up images here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "images"
        rows = measure(options.images, options.side, options.image_size, options.rounds, folder)
    print(table(rows))
    if options.json:
        packages = ("torch", "torchvision", "pillow", "nvidia-dali-cuda130", "numpy")
        versions = {name: _version(name) for name in packages}
        content = {
            "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "versions": versions,
            "date": datetime.date.today().isoformat(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=1))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
