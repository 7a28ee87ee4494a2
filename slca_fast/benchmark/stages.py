"""Every stage of a run against the official code's way, interleaved: rows as ``slca-fast bench`` writes them.

Stages: the training step, the evaluation forward, the class statistics of one task (images to Gaussians) and the
alignment of the last task, on the whole-run benchmark's images and model. GFLOP are counted by torch's FlopCounterMode
and the native library on what each way really runs; ``fraction_of_peak`` is of a matrix product of torch's measured in
the same process.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from slca_fast.benchmark import machine, official_way
from slca_fast.benchmark.flops import gflop_of
from slca_fast.benchmark.run import benchmark_config, cpu_seconds, make_images
from slca_fast.config import Config
from slca_fast.data.batch import Batch
from slca_fast.data.index import load_dataset
from slca_fast.data.stream import ImageSet, Stream
from slca_fast.machine.environment import pick_device
from slca_fast.machine.float32 import fast_float32_products
from slca_fast.methods.alignment import align
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.methods.table import method_class
from slca_fast.model.backbone import Backbone, autocast
from slca_fast.model.build import build_backbone
from slca_fast.model.fast_path import choose
from slca_fast.model.head import Classifier
from slca_fast.training.features import extract_features
from slca_fast.training.stage1 import Stage1

BASELINE = "official way, fp32"
BATCH = 128


def fast_backbone(config: Config, device: torch.device, precision: str, compiled: bool = False) -> Backbone:
    """The backbone as a run of ``config`` in ``precision`` uses it."""
    backbone = build_backbone(config.model, config.data.image_size, config.seed).to(device)
    num_images = config.optim.batch_size
    execution = choose(backbone.vit, device, precision, num_images, compiled=compiled)
    backbone.use(execution, num_training=num_images, num_evaluation=num_images)
    return backbone


@dataclass(frozen=True)
class Stage:
    """One stage: the baseline and our ways, each as a function that runs it once."""

    name: str
    shape: str
    num_images: int
    """Images (or sampled features) of one call."""
    ways: dict[str, Callable[[], Any]]
    counts_flops: bool = True


def stage_of(name: str, method: str, images: Path, device: torch.device, compiled: bool = False) -> Stage:
    """Stage ``name`` of STAGES for ``method`` ("slca" or "slcapp")."""
    return STAGES[name](method, images, device, compiled)


def training_step(method: str, images: Path, device: torch.device, compiled: bool) -> Stage:
    """Forward, backward and optimizer step on one batch that is at hand."""
    config = benchmark_config(method, images)
    learner = _official_learner(config, device)
    learner.begin_task(0)
    batch = _batch(config, device)
    official_batch = [(batch.sample_id_B, batch.images, batch.label_B)]
    ways = {BASELINE: lambda: learner.train_epoch(official_batch, 0)}
    for way, precision, with_compiler in _our_ways(compiled):
        backbone = fast_backbone(config, device, precision, with_compiler)
        head = Classifier(backbone.feature_dim).grow(2, config.seed, device)
        # The batch is at hand: a step reads no images.
        stage1 = Stage1(backbone, head, cast(ImageSet, None), config, 0, 0, precision)
        ways[way] = _as_a_run(device, lambda stage1=stage1: stage1._step(batch))
    return Stage("training step", f"{method}, batch {BATCH}", BATCH, ways)


def evaluation_forward(method: str, images: Path, device: torch.device, compiled: bool) -> Stage:
    """Features of one batch under no_grad."""
    config = benchmark_config(method, images)
    learner, batch = _official_learner(config, device), _batch(config, device)

    def forward(model: Callable[[Tensor], Tensor], precision: str) -> Tensor:
        unchanged = model.unchanged() if isinstance(model, Backbone) else nullcontext()
        with torch.no_grad(), autocast(precision, device), unchanged:
            return model(batch.images).float()

    ways = {BASELINE: lambda: forward(learner.features, "fp32")}
    for way, precision, with_compiler in _our_ways(compiled):
        backbone = fast_backbone(config, device, precision, with_compiler).eval()
        ways[way] = _as_a_run(device, lambda backbone=backbone, precision=precision: forward(backbone, precision))
    return Stage("evaluation forward", f"{method}, batch {BATCH}", BATCH, ways)


def class_statistics(method: str, images: Path, device: torch.device, compiled: bool) -> Stage:
    """From the files (or the cache that stage 1 has filled) of one task's classes to their factored Gaussians."""
    config = benchmark_config(method, images)
    learner, stream = _official_learner(config, device), _stream(config, device)
    dataset = load_dataset(config.data)
    transform = official_way.test_transform(config)

    def official() -> None:
        learner.means.clear()
        learner.covariances.clear()
        for label in range(2):
            one_class = official_way.Images(dataset.train, learner.plan, label, label + 1, transform)
            learner.measure_class(
                DataLoader(one_class, official_way.STATISTICS_BATCH, num_workers=official_way.STATISTICS_WORKERS)
            )

    task = stream.train(0)
    ways: dict[str, Callable[[], Any]] = {BASELINE: official}
    for way, precision, with_compiler in _our_ways(compiled):
        backbone = fast_backbone(config, device, precision, with_compiler)
        ways[way] = _as_a_run(
            device,
            lambda backbone=backbone, precision=precision: method_class(config.method)(
                config, backbone.feature_dim
            ).remember(0, *extract_features(backbone, task, precision), {}),
        )
    shape = f"{method}, 2 classes x {task.num_images // 2} images"
    return Stage("class statistics", shape, task.num_images, ways, counts_flops=False)


def alignment(method: str, images: Path, device: torch.device, compiled: bool, test_passes: bool = True) -> Stage:
    """Stage 2 after the last of five tasks; the official way tests all images after every epoch."""
    config = benchmark_config(method, images)
    learner = _official_learner(config, device)
    dim, num_classes = learner.heads.feature_dim, len(learner.plan.task_of_label)
    gaussians = ClassGaussians(dim, ridge=config.align.ridge)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_classes).repeat_interleave(200)
    features = (
        torch.randn(len(labels), dim, generator=generator) + torch.randn(num_classes, dim, generator=generator)[labels]
    )
    gaussians.update(features.to(device), labels.to(device))
    gaussians.factorize()
    ridge = config.align.ridge * torch.eye(dim, dtype=torch.float64)
    learner.means = [mean.cpu() for mean in gaussians.means]
    learner.covariances = [(gaussians.covariance(c).cpu() + ridge).float() for c in range(num_classes)]
    last = learner.plan.num_tasks - 1
    for task in range(last + 1):
        learner.heads.grow(learner.plan.sizes[task], config.seed, device)
    dataset, transform = load_dataset(config.data), official_way.test_transform(config)
    test = DataLoader(
        official_way.Images(dataset.test, learner.plan, 0, num_classes, transform),
        BATCH,
        num_workers=official_way.TRAIN_WORKERS,
    )

    def official() -> None:
        heads, optimizer = learner.begin_alignment()
        for _ in range(config.align.epochs):
            learner.align_epoch(heads, optimizer, *learner.sample_epoch(last), last)
            if test_passes:
                learner.accuracy(test, heads)

    linear = learner.heads.linear()

    def align_once() -> None:
        align(linear, gaussians, config.align, config.optim.weight_decay, config.seed)

    name = "alignment" if test_passes else "alignment without test passes"
    num_features = config.align.epochs * config.align.samples_per_class * num_classes
    shape = f"{method}, {num_classes} classes, {config.align.epochs} epochs"
    ways = {BASELINE: official, "fp32": _as_a_run(device, align_once)}
    return Stage(name, shape, num_features, ways, counts_flops=False)


def alignment_alone(method: str, images: Path, device: torch.device, compiled: bool) -> Stage:
    """``alignment`` without the official way's test passes: arithmetic against arithmetic."""
    return alignment(method, images, device, compiled, test_passes=False)


STAGES: dict[str, Callable[[str, Path, torch.device, bool], Stage]] = {
    "training-step": training_step,
    "evaluation-forward": evaluation_forward,
    "statistics": class_statistics,
    "alignment": alignment,
    "alignment-alone": alignment_alone,
}


def rows_of(stage: Stage, device: torch.device, *, rounds: int = 5, budget_s: float = 60.0) -> list[dict[str, Any]]:
    """One row a way, the baseline's own included."""
    gflop = {name: gflop_of(way) if stage.counts_flops else None for name, way in stage.ways.items()}
    # torch counts nothing for the CPU's fused attention; all our ways do the same arithmetic.
    most = max((gflop[name] or 0.0 for name in stage.ways if name != BASELINE), default=0.0)
    gflop = {name: value if name == BASELINE or value is None else most for name, value in gflop.items()}
    samples = _measure(stage.ways, device, rounds, budget_s)
    rows = []
    for name in stage.ways:
        dtype = torch.bfloat16 if "bf16" in name else torch.float32
        median_ms = 1e3 * statistics.median(wall for wall, _ in samples[name])
        ratios = [slow / fast for (slow, _), (fast, _) in zip(samples[BASELINE], samples[name])]
        cpu_ratios = [slow / fast for (_, slow), (_, fast) in zip(samples[BASELINE], samples[name])]
        cpu_ms = 1e3 * min(cpu for _, cpu in samples[name])
        fraction, work = None, gflop[name]
        if work:
            if device.type == "cuda":
                fraction = work / median_ms * 1e12 / machine.matmul_flops_per_second(device, dtype)
            else:
                # By CPU time on both sides, so that other programs on the machine do not count.
                fraction = work / cpu_ms * 1e12 / matmul_flops_per_cpu_second(dtype)
        rows.append(
            {
                "suite": "stages",
                "name": stage.name,
                "shape": stage.shape,
                "dtype": str(dtype).removeprefix("torch."),
                "backend": name,
                "baseline": BASELINE,
                "median_ms": median_ms,
                "baseline_median_ms": 1e3 * statistics.median(wall for wall, _ in samples[BASELINE]),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "n": len(ratios),
                "cpu_ms": cpu_ms,
                "cpu_ratio": statistics.median(cpu_ratios),
                "achieved": 1e3 * stage.num_images / median_ms,
                "unit": "features/s" if stage.name.startswith("alignment") else "images/s",
                "gflop_per_image": work / stage.num_images if work else None,
                "fraction_of_peak": fraction,
                "peak_memory_bytes": machine.peak_memory_of(stage.ways[name], device),
            }
        )
    return rows


def _measure(
    ways: dict[str, Callable[[], Any]], device: torch.device, rounds: int, budget_s: float
) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds (workers included) of every way in every round; each was called once before."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    began = time.perf_counter()
    for number in range(rounds):
        if number >= 2 and time.perf_counter() - began > budget_s:
            break
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            samples[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
    return samples


def run(
    *,
    names: tuple[str, ...] = tuple(STAGES),
    methods: tuple[str, ...] = ("slca", "slcapp"),
    rounds: int = 5,
    compiled: bool | None = None,
    images: Path | None = None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Rows of the stages; ``compiled`` adds torch.compile (none: on CUDA only)."""
    device = pick_device("auto")
    compiled = device.type == "cuda" if compiled is None else compiled
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        images = images or make_images(Path(temporary))
        for name in names:
            for method in methods:
                for row in rows_of(stage_of(name, method, images, device, compiled), device, rounds=rounds):
                    rows.append(row)
                    on_row(row)
    return rows


def _our_ways(compiled: bool) -> Iterator[tuple[str, str, bool]]:
    yield "fp32", "fp32", False
    yield "bf16", "bf16", False
    if compiled:
        yield "bf16, torch.compile", "bf16", True


def _as_a_run(device: torch.device, way: Callable[[], Any]) -> Callable[[], Any]:
    """``way`` under the settings that a run makes."""

    def run_way() -> None:
        with fast_float32_products(device):
            way()

    return run_way


def _official_learner(config: Config, device: torch.device):
    num_classes = len(load_dataset(config.data).class_names)
    return official_way.OfficialLearner(config, official_way.plan_of(config, num_classes), device)


def _stream(config: Config, device: torch.device) -> Stream:
    dataset = load_dataset(config.data)
    plan = official_way.plan_of(config, len(dataset.class_names))
    return Stream(dataset, plan, config.data, config.optim.batch_size, device)


def _batch(config: Config, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    side = config.data.image_size
    images = torch.randn(BATCH, 3, side, side, generator=generator).to(device)
    return Batch(images, torch.randint(2, (BATCH,), generator=generator), torch.arange(BATCH))


@functools.cache
def matmul_flops_per_cpu_second(dtype: torch.dtype) -> float:
    """Floating-point operations a second of CPU time (one core) of a 2048-square matrix product, as a run makes it."""
    a = torch.randn(2048, 2048).to(dtype)
    best = float("inf")
    with fast_float32_products(torch.device("cpu")):
        for _ in range(6):
            start = time.process_time()
            torch.mm(a, a)
            best = min(best, time.process_time() - start)
    return 2 * 2048**3 / best


def peaks(device: torch.device) -> dict[str, float]:
    """The machine's measured matrix products and copy."""
    of_core = {
        "matmul fp32, GFLOP per CPU second": matmul_flops_per_cpu_second(torch.float32) / 1e9,
        "matmul bf16, GFLOP per CPU second": matmul_flops_per_cpu_second(torch.bfloat16) / 1e9,
    }
    return {
        **(of_core if device.type == "cpu" else {}),
        "matmul fp32, GFLOP/s": machine.matmul_flops_per_second(device, torch.float32) / 1e9,
        "matmul bf16, GFLOP/s": machine.matmul_flops_per_second(device, torch.bfloat16) / 1e9,
        "copy, GB/s": machine.copy_bytes_per_second(device) / 1e9,
    }
