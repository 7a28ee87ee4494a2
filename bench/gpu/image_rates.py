"""Step "dali": images a second from files to batches on the device, by every way that is here.

DALI comes as wheels (carry.py); without it its rows say so.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import many_images
import numpy as np
import torch
from parts import Context, Part, Step
from records import Row, not_measured

from slca_fast.benchmark.data import BASELINE, loader_epochs, source_epochs
from slca_fast.data import dali
from slca_fast.data.index import load_dataset
from slca_fast.machine.environment import pick_device

WAYS = ("DALI, decoder of the GPU", "DALI, CUDA's cores alone", "DALI on the CPU", "Pillow", "resident cache")


@dataclass
class Timed:
    """Images a second of every epoch; the first decodes for the cache, and starts workers for the others."""

    first: float
    later: list[float]


def measure(way: str, context: Context) -> Iterator[Row]:
    """Rows of one way."""
    sizes, device = context.sizes, pick_device("auto")
    config = replace(sizes.config("slcapp").data, root=str(many_images.made(sizes, context.scratch)))
    index = load_dataset(config).train
    index = index.subset(np.arange(min(sizes.stream_images, index.num_images)))
    case = f"{index.num_images:,} JPEGs of about {sizes.side} px to {config.image_size} px"
    if way.startswith("DALI") and (missing := dali.why_not()):
        yield not_measured("images", case, way, missing)
        return
    num_cores = len(os.sched_getaffinity(0))
    places: dict[str, tuple[dict[str, Any], torch.device]] = {
        WAYS[0]: ({"backend": "dali"}, device),
        WAYS[1]: ({"backend": "dali", "hw_decoder_load": 0.0}, device),
        WAYS[2]: ({"backend": "dali"}, torch.device("cpu")),
        WAYS[3]: ({"backend": "pillow"}, torch.device("cpu")),
        WAYS[4]: ({"backend": "cache"}, device),
    }
    if way == BASELINE:
        epoch, close = loader_epochs(index, config, num_cores)
    else:
        changes, place = places[way]
        epoch, close = source_epochs(index, replace(config, **changes), place)
    try:
        timed = _timed(epoch, device, index.num_images, sizes.rounds, context)
    finally:
        close()
    details = {"cpu_cores": num_cores}
    yield Row("images", case, f"{way}, first epoch", value=timed.first, unit="images/s", n=1, details=details)
    if timed.later:
        yield Row(
            "images", case, f"{way}, later epochs", value=statistics.median(timed.later), unit="images/s",
            n=len(timed.later), least=min(timed.later), greatest=max(timed.later), details=details,
        )  # fmt: skip


def _timed(
    epoch: Callable[[int], Iterator[int]], device: torch.device, num_images: int, rounds: int, context: Context
) -> Timed:
    rates: list[float] = []
    for number in range(rounds):
        start = time.perf_counter()
        seen = sum(epoch(number))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(num_images / (time.perf_counter() - start))
        assert seen == num_images, (seen, num_images)
        if context.left < 2 * num_images / rates[-1] + 10:
            break
    return Timed(rates[0], rates[1:])


STEP = Step(
    about="images a second from JPEGs: DALI, Pillow, the resident cache, torchvision behind a DataLoader",
    minutes=8.5,
    parts=lambda sizes: [Part(way, 80, partial(measure, way)) for way in (*WAYS, BASELINE)],
)
