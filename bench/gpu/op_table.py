"""Step "ops": every op against eager torch, torch.compile and its libraries' best; statistics and alignment at size."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from parts import Context, Part, Step
from records import Row, not_measured

from slca_fast.benchmark import machine, ops
from slca_fast.machine.environment import pick_device
from slca_fast.methods.alignment import align
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.head import LinearClassifier
from slca_fast.ops.registry import OpSpec, Sample, all_ops

WANTED_FIRST = ("symmetric_cross_entropy", "augment", "class_moments", "lora_linear")
NO_COMPILER = ("augment",)
"""Its reference goes from image to image: compiled, that is one graph of them all, and as many minutes."""


def measure_op(name: str, context: Context) -> Iterator[Row]:
    """A row for each backend, sample and dtype; an op that disagrees with its reference is not timed."""
    device, sizes = pick_device("auto"), context.sizes
    spec = all_ops()[name]
    if sizes.dry:
        spec = _small(spec)
    context.facts["measured_peaks"] = {  # bytes and operations a second
        "copy": machine.copy_bytes_per_second(device),
        **{f"matmul {short}": machine.matmul_flops_per_second(device, dtype) for short, dtype in DTYPES.items()},
    }
    for short, dtype in DTYPES.items():
        if dtype not in spec.dtypes:
            continue
        samples = iter(spec.benchmark_samples(device, dtype))
        while (sample := next(samples, None)) is not None:
            case = f"{sample.label}, {short}"
            try:
                rows = ops.rows_of_sample(
                    spec, sample, device, dtype, compiled=name not in NO_COMPILER, budget_s=sizes.op_seconds
                )
                yield from _merged(name, case, short, list(rows), spec, sample, device)
            except Exception as error:
                # A compiler's own exceptions too: another sample may do.
                words = " ".join(str(error).split())[:300]
                yield not_measured(f"op {name}", case, "", f"{type(error).__name__}: {words}")


def _small(spec: OpSpec) -> OpSpec:
    """With the contract test's first sample that holds anything, and baselines that overlook what is new to them."""

    def is_full(sample: Sample) -> bool:
        return all(tensor.numel() for tensor in sample.args if isinstance(tensor, torch.Tensor))

    def overlooking(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(function).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return lambda *args, **kwargs: function(
            *args, **{name: value for name, value in kwargs.items() if takes_all or name in parameters}
        )

    return replace(
        spec,
        benchmark_samples=lambda *where: [next(filter(is_full, spec.samples(*where)))],
        baselines={name: overlooking(function) for name, function in spec.baselines.items()},
    )


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _merged(
    name: str, case: str, short: str, rows: list[dict[str, Any]], spec: OpSpec, sample: Sample, device: torch.device
) -> Iterator[Row]:
    """One row for each backend of those for each backend and baseline."""
    for backend in dict.fromkeys(row["backend"] for row in rows):
        of_backend = [row for row in rows if row["backend"] == backend]
        first = of_backend[0]
        num_bytes = None if spec.bytes_moved is None else spec.bytes_moved(sample)
        yield Row(
            f"op {name}",
            case,
            backend,
            value=first["median_ms"],
            unit="ms",
            n=first["n"],
            ratios={
                row["baseline"]: {
                    "median": row["ratio"],
                    "least": row["ratio_min"],
                    "greatest": row["ratio_max"],
                    "n": row["n"],
                }
                for row in of_backend
            },
            fraction_of_peak=first["fraction_of_peak"],
            peak={"GB/s": "copy", "GFLOP/s": f"matmul {short}"}.get(first["unit"]),
            peak_memory_bytes=first["peak_memory_bytes"],
            details={
                "achieved": first["achieved"],
                "achieved_unit": first["unit"],
                "baseline_ms": {row["baseline"]: row["baseline_median_ms"] for row in of_backend},
                "least_bytes": num_bytes,
                "in_cache": _fits_cache(num_bytes, device),
            },
        )


def _fits_cache(num_bytes: int | None, device: torch.device) -> bool | None:
    """Whether repeated calls find their inputs in the GPU's cache, so that "of peak" may pass 1."""
    if num_bytes is None or device.type != "cuda":
        return None
    return num_bytes < torch.cuda.get_device_properties(device).L2_cache_size


def measure_second_stage(context: Context) -> Iterator[Row]:
    """Statistics and alignment of a whole run on made-up features, the first time and again."""
    device, sizes = pick_device("auto"), context.sizes
    config = sizes.config("slcapp")
    dim = 32 if sizes.dry else 768
    per_class, per_task = sizes.images_per_class[0], sizes.classes_per_task
    case = f"{sizes.num_classes} classes x {per_class} x {dim}, {sizes.num_tasks} tasks"
    features = torch.randn(sizes.num_tasks, per_task * per_class, dim, device=device)
    labels = torch.arange(per_task, device=device).repeat_interleave(per_class)
    seconds: dict[str, list[float]] = {"statistics": [], "alignment": []}
    for _ in range(3):
        gaussians = ClassGaussians(dim, ridge=config.align.ridge)
        spent = dict.fromkeys(seconds, 0.0)
        for task in range(sizes.num_tasks):
            start = _now(device)
            gaussians.update(features[task], labels + task * per_task)
            gaussians.factorize()
            measured = _now(device)
            num_labels = (task + 1) * per_task
            linear = LinearClassifier(
                torch.randn(num_labels, dim, device=device),
                torch.randn(num_labels, device=device),
                (per_task,) * (task + 1),
            )
            align(linear, gaussians, config.align, config.optim.weight_decay, config.seed)
            spent["statistics"] += measured - start
            spent["alignment"] += _now(device) - measured
        for name, value in spent.items():
            seconds[name].append(value)
    for name, values in seconds.items():
        yield Row(f"{name}, whole run", case, "the first time", value=values[0], unit="s", n=1)
        again = sorted(values[1:])
        spread = {"n": len(again), "least": again[0], "greatest": again[-1]}
        yield Row(f"{name}, whole run", case, "again", value=again[0], unit="s", **spread)


def measure_many_classes(context: Context) -> Iterator[Row]:
    """Dense Gaussians of ImageNet-21k's classes: whether they fit, and how long moments, factors and samples take."""
    device, sizes = pick_device("auto"), context.sizes
    dim, num_classes, at_once, rows_each = (8, 6, 4, 3) if sizes.dry else (768, 21_841, 512, 16)
    case = f"{num_classes:,} classes x {rows_each} x {dim}, dense"
    spent = dict.fromkeys(("moments", "samples of 64, factors made"), 0.0)

    def whole() -> None:
        gaussians = ClassGaussians(dim, storage="dense")
        for name in spent:
            start = _now(device)
            for first in range(0, num_classes, at_once):
                classes = torch.arange(first, min(first + at_once, num_classes), device=device)
                if name == "moments":
                    labels = classes.repeat_interleave(rows_each)
                    gaussians.update(torch.randn(len(labels), dim, device=device), labels)
                else:
                    gaussians.sample(64, seed=first, classes=classes.tolist())
            spent[name] = _now(device) - start

    peak_bytes = machine.peak_memory_of(whole, device)
    for name, seconds in spent.items():
        yield Row("many classes", case, name, value=seconds, unit="s", n=1, peak_memory_bytes=peak_bytes)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def parts(sizes: Any) -> list[Part]:
    """The stage that holds a target first, then the ops, the most wanted first."""
    names = [*WANTED_FIRST, *(name for name in all_ops() if name not in WANTED_FIRST)]
    return [
        Part("second-stage", 60, measure_second_stage),
        *(Part(name, 90, partial(measure_op, name)) for name in names),
        Part("many-classes", 90, measure_many_classes),
    ]


STEP = Step(
    about="every op against eager, torch.compile and the best of libraries; statistics and alignment of a whole run",
    minutes=8.5,
    parts=parts,
)
