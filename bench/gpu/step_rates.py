"""Steps "rates-full" and "rates-lora": a training step of ViT-B/16 by every way, interleaved, and where its time goes.

The baselines are the official way's step on the same device: eager fp32 (no TF32, torch's default), and the same
program under bf16 autocast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import predict
import torch
from parts import Context, Part, Step
from records import Row, not_measured

from slca_fast.benchmark import machine, official_way, timing
from slca_fast.benchmark.flops import gflop_of
from slca_fast.config import Config
from slca_fast.data.batch import Batch
from slca_fast.data.stream import ImageSet
from slca_fast.machine.environment import pick_device
from slca_fast.machine.float32 import fast_float32_products
from slca_fast.model.attention import CANDIDATES
from slca_fast.model.backbone import Backbone
from slca_fast.model.build import build_backbone
from slca_fast.model.fast_path import choose
from slca_fast.model.head import Classifier
from slca_fast.tasks import plan_tasks
from slca_fast.training.stage1 import Stage1

OFFICIAL_FP32, OFFICIAL_BF16 = "official way, fp32, eager", "official way, bf16 autocast, eager"
EAGER_FP32, COMPILED = "fp32, eager", "bf16, compiled"
MOST_KERNELS = 30
PROFILED_STEPS = 3


def eager_bf16(attention: str) -> str:
    """The way's name."""
    return f"bf16, eager, attention {attention}"


class Ways:
    """Training steps on one batch, by name, as they can be built."""

    def __init__(self, config: Config, batch_size: int, device: torch.device) -> None:
        self.config = replace(config, optim=replace(config.optim, batch_size=batch_size))
        self.device, self.batch_size = device, batch_size
        size = config.data.image_size
        images = torch.randn(batch_size, 3, size, size, device=device)
        labels = torch.randint(config.tasks.initial, (batch_size,))
        self.batch = Batch(images, labels, torch.arange(batch_size))
        self._backbone = build_backbone(config.model, size, config.seed).to(device)
        self._official: official_way.OfficialLearner | None = None
        self.steps: dict[str, Callable[[], Any]] = {}
        self.held_bytes: dict[str, int] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def add(self, name: str, build: Callable[[], tuple[Callable[[], Any], dict[str, Any]]]) -> None:
        """Builds a way and takes two steps; keeps it, or the reason why it cannot run."""
        before = self._allocated()
        try:
            step, self.about[name] = build()
            step()
            step()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.steps[name] = step
        except Exception as error:
            # Not every attention kernel serves every device, and a baseline may not fit beside ours.
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.held_bytes[name] = self._allocated() - before

    def official(self, precision: str) -> tuple[Callable[[], Any], dict[str, Any]]:
        if self._official is None:
            num_classes = self.config.tasks.initial
            plan = plan_tasks(num_classes, self.config.seed, sizes=(num_classes,))
            self._official = official_way.OfficialLearner(self.config, plan, self.device)
            self._official.begin_task(0)
        learner = self._official
        batch = [(self.batch.sample_id_B, self.batch.images, self.batch.label_B)]

        def step() -> None:
            in_bf16 = torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
            with in_bf16:
                learner.train_epoch(batch, 0)

        return step, {}

    def ours(
        self, precision: str, compiled: bool = False, attention: str = "auto"
    ) -> tuple[Callable[[], Any], dict[str, Any]]:
        config, device = self.config, self.device
        backbone = copy.deepcopy(self._backbone)
        num_images = config.optim.batch_size
        execution = choose(backbone.vit, device, precision, num_images, compiled=compiled, attention=attention)
        backbone.use(execution, num_training=num_images, num_evaluation=num_images)
        head = Classifier(backbone.feature_dim).grow(config.tasks.initial, config.seed, device)
        # The batch is at hand: a step reads no images.
        stage1 = Stage1(backbone, head, cast(ImageSet, None), config, 0, 0, precision)
        backbone.train()

        def step() -> None:
            with fast_float32_products(device):
                stage1._step(self.batch)

        return step, _facts(backbone)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def _facts(backbone: Backbone) -> dict[str, Any]:
    execution = backbone.execution
    return {"execution": {**execution.backends(), "precision": execution.precision}, "reasons": execution.reasons}


def measure(method: str, batch_size: int, context: Context) -> Iterator[Row]:
    """Rows of one method and batch size: a rate a way, and the kernels of the two fastest kinds of ours."""
    device, sizes = pick_device("auto"), context.sizes
    config = sizes.config(method)
    ways, case = Ways(config, batch_size, device), f"{method}, batch {batch_size}"
    ways.add(OFFICIAL_FP32, lambda: ways.official("fp32"))
    ways.add(OFFICIAL_BF16, lambda: ways.official("bf16"))
    ways.add(EAGER_FP32, lambda: ways.ours("fp32"))
    for attention in CANDIDATES[device.type]:
        ways.add(eager_bf16(attention), lambda attention=attention: ways.ours("bf16", attention=attention))
    ways.add(COMPILED, lambda: ways.ours("bf16", compiled=True))
    for name, why in ways.failed.items():
        yield not_measured("training step", case, name, why)
    timings = timing.interleaved(ways.steps, device, rounds=sizes.rounds, budget_s=0.4 * context.left, least_rounds=2)
    peaks = {
        "matmul fp32": machine.matmul_flops_per_second(device, torch.float32),
        "matmul bf16": machine.matmul_flops_per_second(device, torch.bfloat16),
        "copy": machine.copy_bytes_per_second(device),
    }
    context.facts["measured_peaks"] = peaks
    gflop = {name: gflop_of(step) for name, step in ways.steps.items() if name != COMPILED}
    # torch counts nothing for the CPU's fused attention, nor what is compiled; all our ways do the same arithmetic.
    ours = max((value for name, value in gflop.items() if not name.startswith("official")), default=0.0)
    computed_ms = predict.total(predict.step(method), predict.Machine("here", peaks["matmul bf16"], peaks["copy"]))
    about_vit_b = {"computed_ms_before_and_after": [ms * batch_size / predict.BATCH for ms in computed_ms]}
    ways.about[COMPILED] |= {} if sizes.dry else about_vit_b
    for name in ways.steps:
        yield _rate(ways, name, case, timings, gflop[name] if name.startswith("official") else ours, peaks)
    for name in (COMPILED, _fastest_eager(ways, timings)):
        if name in ways.steps:
            yield kernels_of(name, case, ways.steps[name], timings.median_ms(name), device)


def _rate(
    ways: Ways,
    name: str,
    case: str,
    timings: timing.Timings,
    gflop: float,
    peaks: dict[str, float],
) -> Row:
    median_ms, elapsed_ms = timings.median_ms(name), timings.elapsed_ms[name]
    peak = "matmul bf16" if "bf16" in name else "matmul fp32"
    baselines = [other for other in (OFFICIAL_FP32, OFFICIAL_BF16) if other in ways.steps and other != name]
    beside = machine.peak_memory_of(ways.steps[name], ways.device)
    images_per_second = [1e3 * ways.batch_size / ms for ms in elapsed_ms]
    return Row(
        "training step",
        case,
        name,
        value=1e3 * ways.batch_size / median_ms,
        unit="images/s",
        n=len(elapsed_ms),
        least=min(images_per_second),
        greatest=max(images_per_second),
        ratios={other: ratio_of(timings, other, name) for other in baselines},
        fraction_of_peak=gflop * 1e12 / median_ms / peaks[peak],
        peak=peak,
        peak_memory_bytes=None if beside is None else beside + ways.held_bytes[name],
        details={
            "step_ms": median_ms,
            "gflop_per_image": gflop / ways.batch_size,
            "least_ms_by_arithmetic": gflop * 1e12 / peaks[peak],
            **ways.about[name],
        },
    )


def ratio_of(timings: timing.Timings, baseline: str, name: str) -> dict[str, float]:
    """As a row keeps it."""
    ratio = timings.ratio(baseline, name)
    return {"median": ratio.median, "least": ratio.least, "greatest": ratio.greatest, "n": ratio.n}


def _fastest_eager(ways: Ways, timings: timing.Timings) -> str:
    eager = [name for name in ways.steps if name.startswith("bf16, eager")]
    return min(eager, key=timings.median_ms, default="")


def kernels_of(name: str, case: str, step: Callable[[], Any], step_ms: float, device: torch.device) -> Row:
    """Which kernels a step's time goes to; the value is the part of a step in which the device computes."""
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
        if on_cuda:
            torch.cuda.synchronize(device)

    def own_ms(event: Any) -> float:
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        return microseconds * 1e-3 / PROFILED_STEPS

    wanted = "CUDA" if on_cuda else "CPU"
    events = [event for event in profiler.key_averages() if event.device_type.name == wanted]
    events.sort(key=own_ms, reverse=True)
    computing_ms = sum(own_ms(event) for event in events)
    if computing_ms == 0:
        return not_measured("kernels of a step", case, name, "the profiler saw no kernel on this device")
    kernels = [
        {"name": event.key[:160], "ms": own_ms(event), "calls": event.count / PROFILED_STEPS}
        for event in events[:MOST_KERNELS]
    ]
    details = {"computing_ms": computing_ms, "step_ms": step_ms, "kernels": kernels}
    return Row("kernels of a step", case, name, value=computing_ms / step_ms, unit="of the step", details=details)


def step_of(method: str, what: str) -> Step:
    """The step of one method."""
    return Step(
        about=f"training steps of {what} against the official way's in fp32 and bf16, attention choices, kernels",
        minutes=8.5,
        parts=lambda sizes: [
            Part(f"{method}-{batch_size}", 245, partial(measure, method, batch_size))
            for batch_size in sizes.batch_sizes
        ],
    )


FULL, LORA = step_of("slca", "full fine-tuning"), step_of("slcapp", "SLCA++ LoRA")
