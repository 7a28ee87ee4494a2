"""What summary.json says of a run besides its metrics."""

from __future__ import annotations

from typing import Any

import torch

from slca_fast.machine.environment import device_description, peak_memory_bytes, versions
from slca_fast.machine.float32 import float32_products_backend
from slca_fast.ops.registry import automatic_backends
from slca_fast.runs.clock import Clock
from slca_fast.runs.setup import Setup
from slca_fast.training.optim import optimizer_backend


def backends_of(setup: Setup) -> dict[str, Any]:
    """Who computes what, and why: the summary's ``backends`` and ``backend_reasons``."""
    ops, (products, why_products) = automatic_backends(setup.device), float32_products_backend(setup.device)
    return {
        "backends": {
            "data": setup.stream.backend,
            "optimizer": optimizer_backend(setup.config.optim.name, setup.device),
            **setup.execution.backends(),
            "fp32 products": products,
            **{name: backend for name, (backend, _) in ops.items()},
        },
        "backend_reasons": {
            "data": setup.stream.reason,
            **setup.execution.reasons,
            "fp32 products": why_products,
            **{name: why for name, (_, why) in ops.items()},
        },
    }


def run_facts(setup: Setup, clock: Clock, num_tasks_done: int) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "preset": setup.preset,
        "method": setup.config.method,
        "method_title": setup.learned.method.title,
        "seed": setup.config.seed,
        "task_sizes": list(setup.plan.sizes[:num_tasks_done]),
        "class_order": list(setup.plan.class_order),
        "class_names": list(setup.dataset.class_names),
        "phase_seconds": clock.seconds,
        "exchange_seconds": clock.exchange_seconds,
        "checkpoint_seconds": clock.checkpoint_seconds,
        "total_seconds": clock.total_seconds,
        "train_images_per_second": clock.train_images_per_second,
        "peak_memory_bytes": peak_memory_bytes(setup.device),
        **backends_of(setup),
        "versions": versions(),
        "device": device_description(setup.device),
        "cpu_threads": torch.get_num_threads(),
        "precision": setup.execution.precision,
        "weights_sha256": setup.learned.digest(),
        "data_sha256": setup.data_sha256,
        "data_problems": {
            "quarantined": len(setup.problems),
            "notes": setup.dataset.notes,
            "classes_without_images": [str(cell) for cell in setup.dataset.empty_cells],
        },
    }
