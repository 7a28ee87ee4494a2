"""Step "compile": what a process pays before its first step, with empty caches of the compilers and with full ones."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial

from parts import Context, Part, Step
from records import Row

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def measure(method: str, way: str, context: Context) -> Iterator[Row]:
    """``way`` "cold" empties the caches first; "warm" takes what the cold process has left."""
    began = time.perf_counter()
    folder = context.scratch / "compile" / method
    if way == "cold":
        shutil.rmtree(folder, ignore_errors=True)
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ |= {name: str(folder / name.lower()) for name in VARIABLES}
    try:
        yield _start_up(method, way, context, began)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start_up(method: str, way: str, context: Context, began: float) -> Row:
    import torch

    from slca_fast.benchmark.stages import fast_backbone
    from slca_fast.machine.environment import pick_device, pick_precision

    imported = time.perf_counter()
    device = pick_device("auto")
    torch.randn(1, device=device).item()
    device_ready = time.perf_counter()
    config = context.sizes.config(method)
    precision = pick_precision("auto", device)
    backbone = fast_backbone(config, device, precision, compiled=True)
    built = time.perf_counter()
    backbone.warm_up(config.data.image_size, precision)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    compiled = time.perf_counter()
    seconds = {
        "imports": imported - began,
        "first use of the device": device_ready - imported,
        "model, LoRA and the choice of attention": built - device_ready,
        "compiling, training and evaluation": compiled - built,
    }
    return Row(
        "start-up",
        method,
        f"{way} caches",
        value=seconds["compiling, training and evaluation"],
        unit="s to compile",
        details={"seconds": seconds, "until_the_first_step": compiled - began},
    )


STEP = Step(
    about="compile times with empty and with full caches, and what else a process does before its first step",
    minutes=8.5,
    parts=lambda sizes: [
        Part(f"{method}-{way}", 200 if way == "cold" else 100, partial(measure, method, way))
        for method in ("slcapp", "slca")
        for way in ("cold", "warm")
    ],
)
