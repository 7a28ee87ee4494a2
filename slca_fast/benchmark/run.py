"""A whole run against the official code's way: same images, tasks, epochs and model, in one interleaved measurement.

The images are made up: 10 classes of 200 training and 50 test JPEGs of about 64 px, learnt as 5 tasks of 2 classes in
5 epochs by a ViT-tiny with patches of 8 px (65 tokens), batch 128. Compile time counts. The official way is
``official_way.py`` beside this file.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch

from slca_fast.benchmark import official_way
from slca_fast.config import Config, RuntimeConfig, TasksConfig
from slca_fast.data.prepare import prepare
from slca_fast.embedded import write_digits
from slca_fast.experiment import run as run_experiment
from slca_fast.methods.presets import PRESETS

METHODS = {"slca": "slca-imagenet-r-in21k", "slcapp": "slcapp-imagenet-r-in21k"}
NUM_CLASSES, NUM_TRAIN, NUM_TEST, SIDE = 10, 200, 50, 64
Precision = Literal["fp32", "bf16"]
OFFICIAL = "official way, fp32"
NOT_TIMED = (
    "median_ms", "baseline_median_ms", "ratio", "ratio_min", "ratio_max", "achieved", "unit", "fraction_of_peak",
    "peak_memory_bytes",
)  # fmt: skip


def make_images(
    folder: Path, num_classes: int = NUM_CLASSES, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST
) -> Path:
    """The benchmark's images below ``folder``."""
    root = folder / f"{num_classes}x{num_train}"
    prepare("synthetic", None, root, num_classes=num_classes, num_train=num_train, num_test=num_test, side=SIDE)
    return root


def benchmark_config(
    method: str,
    images: str | Path,
    seed: int = 1993,
    *,
    precision: Precision = "fp32",
    compiled: bool = False,
    epochs: int = 5,
    increment: int = 2,
    output: str | None = None,
) -> Config:
    """``method`` ("slca" or "slcapp") with ImageNet-R's settings on the benchmark's images and model."""
    base = PRESETS[METHODS[method]]()
    return dataclasses.replace(
        base,
        seed=seed,
        output=output,
        tasks=TasksConfig(initial=increment, increment=increment),
        data=dataclasses.replace(base.data, root=str(images), image_size=SIDE),
        model=dataclasses.replace(
            base.model, name="vit_tiny_patch16_224", pretrained=False, kwargs={"img_size": SIDE, "patch_size": 8}
        ),
        optim=dataclasses.replace(base.optim, epochs=epochs, milestones=(max(1, epochs - 1),)),
        runtime=RuntimeConfig(precision=precision, compile=compiled),
    )


def timed(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The function's result with ``wall_seconds`` and ``cpu_seconds`` (this process, its threads and children).

    A CUDA device's peak of memory is counted anew, so that what the result says of it is its own.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = function()
    return {**result, "wall_seconds": time.perf_counter() - wall, "cpu_seconds": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    """CPU time of this process, its threads and its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_ours(config: Config) -> dict[str, Any]:
    """The product's run in a folder that goes away; its summary."""
    with tempfile.TemporaryDirectory() as folder:
        return run_experiment(dataclasses.replace(config, output=str(Path(folder) / "run")), preset="bench")


def contenders(method: str, images: Path, seed: int, compiled: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """The official way and ours by name."""

    def ours(precision: Precision, with_compiler: bool) -> Callable[[], dict[str, Any]]:
        return lambda: run_ours(benchmark_config(method, images, seed, precision=precision, compiled=with_compiler))

    found = {
        OFFICIAL: lambda: official_way.run_official(benchmark_config(method, images, seed)),
        "fp32": ours("fp32", False),
        "bf16": ours("bf16", False),
    }
    if compiled:
        found["bf16, torch.compile"] = ours("bf16", True)
    return found


def measure(
    *,
    methods: Sequence[str] = tuple(METHODS),
    rounds: int = 1,
    compiled: bool = False,
    images: Path | None = None,
    seeds: Sequence[int] = (1993,),
    on_line: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows of whole runs: every contender once a round and seed, in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        images = images or make_images(Path(temporary))
        rows = []
        for method in methods:
            results: dict[str, list[dict[str, Any]]] = {}
            for number in range(rounds * len(seeds)):
                seed = seeds[number % len(seeds)]
                for name, contender in contenders(method, images, seed, compiled).items():
                    result = timed(contender)
                    results.setdefault(name, []).append(result)
                    phases = ", ".join(f"{k} {v:.1f}" for k, v in result["phase_seconds"].items())
                    on_line(
                        f"{method} seed {seed} {name}: {result['wall_seconds']:.1f} s wall, "
                        f"{result['cpu_seconds']:.1f} s CPU; {phases}; accuracy {result['accuracy_curve'][-1]:.2f}%"
                    )
            rows += _rows(method, results)
        return rows


def _rows(method: str, results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    baseline = results[OFFICIAL]
    for name, ours in results.items():
        ratios = [slow["wall_seconds"] / fast["wall_seconds"] for slow, fast in zip(baseline, ours)]
        cpu_ratios = [slow["cpu_seconds"] / fast["cpu_seconds"] for slow, fast in zip(baseline, ours)]
        median_s = statistics.median(r["wall_seconds"] for r in ours)
        rows.append(
            {
                "suite": "run",
                "name": f"{method}, whole run",
                "shape": f"{NUM_CLASSES} classes x {NUM_TRAIN} images of {SIDE} px, 5 tasks, 5 epochs",
                "dtype": "bfloat16" if "bf16" in name else "float32",
                "backend": name,
                "baseline": OFFICIAL,
                "median_ms": 1e3 * median_s,
                "baseline_median_ms": 1e3 * statistics.median(r["wall_seconds"] for r in baseline),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "n": len(ours),
                "achieved": 5 * NUM_CLASSES * NUM_TRAIN / median_s,
                "unit": "training images/s, all included",
                "fraction_of_peak": None,
                "peak_memory_bytes": ours[-1].get("peak_memory_bytes"),
                "cpu_ratio": statistics.median(cpu_ratios),
                "phase_seconds": [r["phase_seconds"] for r in ours],
                "last_accuracy": [r["accuracy_curve"][-1] for r in ours],
            }
        )
    return rows


def growth(on_line: Callable[[str], None] = lambda text: None, precision: Precision = "fp32") -> list[dict[str, Any]]:
    """How time and memory grow: images x2, classes x2 (same task size), tasks x2 (same classes), one run each.

    Every run has a process of its own, so that its peak memory is its own.
    """
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, num_classes, num_train, increment in (
            ("base", 8, 64, 4),
            ("images x2", 8, 128, 4),
            ("classes x2", 16, 64, 4),
            ("tasks x2", 8, 64, 2),
        ):
            images = make_images(Path(temporary), num_classes, num_train, 16)
            config = benchmark_config("slcapp", images, precision=precision, epochs=3, increment=increment)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                result = process.submit(_timed_run, config).result()
            seconds = result["phase_seconds"]
            trained = 3 * num_classes * num_train
            rows.append(
                {
                    "suite": "growth",
                    "name": name,
                    "shape": f"{num_classes} classes x {num_train} images, {num_classes // increment} tasks",
                    "dtype": "bfloat16" if precision == "bf16" else "float32",
                    "backend": precision,
                    "baseline": None,
                    "median_ms": 1e3 * result["wall_seconds"],
                    "baseline_median_ms": None,
                    "ratio": None,
                    "ratio_min": None,
                    "ratio_max": None,
                    "n": 1,
                    "achieved": 1e3 * result["cpu_seconds"] / trained,
                    "unit": "CPU ms per training image, all included",
                    "fraction_of_peak": None,
                    "peak_memory_bytes": result["peak_memory_bytes"],
                    "phase_seconds": [seconds],
                }
            )
            on_line(
                f"{name}: {result['wall_seconds']:.1f} s wall, {result['cpu_seconds']:.1f} s CPU, of which stage 1 "
                f"{seconds['stage1']:.1f} s wall, peak {result['peak_memory_bytes'] / 1e6:.0f} MB"
            )
    return rows


def _timed_run(config: Config) -> dict[str, Any]:
    return timed(lambda: run_ours(config))


def accuracy(
    *,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (1993, 1996, 1997),
    on_line: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Last and average incremental accuracy of the official way and of ours, in fp32 and bf16, seed by seed.

    On the embedded digits and weights with ImageNet-R's transforms, which are the ones that the official way knows.
    """
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        digits = write_digits(Path(temporary) / "digits")
        for method in methods:
            base = PRESETS[f"demo-{method}"]()
            base = dataclasses.replace(base, data=dataclasses.replace(base.data, root=str(digits), recipe="imagenet-r"))
            last: dict[str, list[float]] = {}
            average: dict[str, list[float]] = {}
            for seed in seeds:
                seeded = dataclasses.replace(base, seed=seed)
                for name in (OFFICIAL, "fp32", "bf16"):
                    if name == OFFICIAL:
                        curve = official_way.run_official(seeded)["accuracy_curve"]
                    else:
                        runtime = dataclasses.replace(seeded.runtime, precision=name)
                        curve = run_ours(dataclasses.replace(seeded, runtime=runtime))["accuracy_curve"]
                    last.setdefault(name, []).append(curve[-1])
                    average.setdefault(name, []).append(statistics.mean(curve))
                    on_line(f"{method} seed {seed} {name}: Last {curve[-1]:.2f}, Inc {average[name][-1]:.2f}")
            for name in last:
                on_line(
                    f"{method} {name}: Last {statistics.mean(last[name]):.2f} +- {statistics.pstdev(last[name]):.2f}, "
                    f"Inc {statistics.mean(average[name]):.2f} +- {statistics.pstdev(average[name]):.2f}"
                )
                rows.append(
                    {
                        "suite": "accuracy",
                        "name": f"{method}, embedded digits",
                        "shape": "10 classes, 5 tasks, 5 epochs",
                        "dtype": "bfloat16" if name == "bf16" else "float32",
                        "backend": name,
                        "baseline": OFFICIAL,
                        **dict.fromkeys(NOT_TIMED),
                        "n": len(seeds),
                        "seeds": list(seeds),
                        "last_accuracy": last[name],
                        "average_incremental_accuracy": average[name],
                    }
                )
    return rows


def machine_facts() -> dict[str, Any]:
    """Device, versions and date of a benchmark file."""
    import datetime

    from slca_fast.machine.environment import device_description, machine, pick_device, versions

    return {
        "machine": {**machine(), "device": device_description(pick_device("auto")), "torch": torch.__version__},
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
