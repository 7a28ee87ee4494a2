"""Fills performance.md's target table on a CUDA machine in one call of under nine minutes.

``python bench/gpu_table.py [--json FILE] [--minutes 8.5]``: takes the targets and the GPU tests one by one until the
time is up, and writes what it got after each; a target that was not reached in time says "not measured".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slca_fast.benchmark import machine, ops, stages
from slca_fast.benchmark.run import machine_facts, run_ours
from slca_fast.data.batch import Batch
from slca_fast.data.prepare import prepare
from slca_fast.methods.presets import PRESETS
from slca_fast.model.head import Classifier
from slca_fast.ops.registry import all_ops
from slca_fast.training.stage1 import Stage1

ROOT = Path(__file__).resolve().parents[1]


def gpu_tests() -> dict[str, Any]:
    """pytest -m gpu: the outcome's last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-x", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return {"achieved": (done.stdout.strip().splitlines() or ["no output"])[-1], "unit": "pytest -m gpu"}


def step_rate(preset: str, precision: str, compiled: bool, batch_size: int = 128, rounds: int = 20) -> dict[str, Any]:
    """Training images a second of a preset's step on a batch that is on the GPU."""
    base = PRESETS[preset]()
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, pretrained=False))
    device = torch.device("cuda")
    backbone = stages.fast_backbone(config, device, precision, compiled)
    start = time.perf_counter()
    if compiled:
        backbone.warm_up(config.data.image_size, precision)
    compile_seconds = time.perf_counter() - start
    head = Classifier(backbone.feature_dim).grow(20, config.seed, device)
    stage1 = Stage1(backbone, head, None, config, 0, 0, precision)
    images = torch.randn(batch_size, 3, config.data.image_size, config.data.image_size, device=device)
    batch = Batch(images, torch.randint(20, (batch_size,)), torch.arange(batch_size))
    gflop = stages.gflop_of(lambda: stage1._step(batch)) / batch_size
    for _ in range(5):
        stage1._step(batch)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        stage1._step(batch)
    torch.cuda.synchronize()
    rate = rounds * batch_size / (time.perf_counter() - start)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return {
        "achieved": rate,
        "unit": "images/s",
        "n": rounds,
        "attention": backbone.attention.name,
        "attention_reason": backbone.attention.reason,
        "compile_seconds": compile_seconds,
        "gflop_per_image": gflop,
        "fraction_of_peak": rate * gflop * 1e9 / machine.matmul_flops_per_second(device, dtype),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
    }


def whole_run(scale: float) -> dict[str, Any]:
    """SLCA++ on a made-up Split ImageNet-R of ``scale`` times the images; all epochs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        prepare("synthetic", None, root, like="imagenet-r", scale=scale)
        base = PRESETS["slcapp-imagenet-r-in21k"]()
        config = dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, root=str(root)),
            model=dataclasses.replace(base.model, pretrained=False),
        )
        summary = run_ours(config)
    return {
        "achieved": summary["total_seconds"],
        "unit": f"s for {scale:g} of the images",
        "phase_seconds": summary["phase_seconds"],
        "images_per_second": summary["train_images_per_second"],
        "backends": summary["backends"],
        "peak_memory_bytes": summary["peak_memory_bytes"],
    }


def op_rows(name: str) -> dict[str, Any]:
    """Every row of one op's benchmark."""
    rows = ops.run(torch.device("cuda"), names=[name], compiled=name == "symmetric_cross_entropy", budget_s=1.5)
    return {"achieved": "see rows", "rows": rows}


def targets(scale: float) -> dict[str, tuple[str, Callable[[], dict[str, Any]]]]:
    """Name -> (target, measurement), the most wanted first."""
    full, lora = "slca-imagenet-r-in21k", "slcapp-imagenet-r-in21k"
    found = {
        "full fine-tuning, bf16, compiled": (">= 4,000 images/s", lambda: step_rate(full, "bf16", True)),
        "SLCA++ LoRA, bf16, compiled": (">= 6,000 images/s", lambda: step_rate(lora, "bf16", True)),
        "full fine-tuning, bf16, eager": ("none", lambda: step_rate(full, "bf16", False)),
        "full fine-tuning, fp32, eager": ("the ratio's baseline", lambda: step_rate(full, "fp32", False, rounds=5)),
        "GPU tests": ("all pass", gpu_tests),
    }
    for name in all_ops():
        found[f"op {name}"] = ("see docs/performance.md", lambda name=name: op_rows(name))
    found["whole SLCA++ run"] = ("<= 300 s for all of Split ImageNet-R", lambda: whole_run(scale))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--scale", type=float, default=0.02, help="share of ImageNet-R's images in the whole run")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    end = time.monotonic() + 60 * options.minutes
    facts = machine_facts()
    facts["machine"]["measured_peaks"] = stages.peaks(torch.device("cuda"))
    rows: list[dict[str, Any]] = []
    for name, (target, measure) in targets(options.scale).items():
        row: dict[str, Any] = {"name": name, "target": target, "achieved": "not measured"}
        if time.monotonic() < end:
            start = time.perf_counter()
            try:
                row |= measure()
            except Exception as error:
                # One broken target must not cost the others their turn on a borrowed machine.
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {error}"
            row["measuring_seconds"] = time.perf_counter() - start
            torch.cuda.empty_cache()
        rows.append(row)
        print(f"{name:<40} {row['achieved']} {row.get('unit', '')} (target: {target})", flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
