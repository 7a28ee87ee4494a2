"""``slca-fast doctor``: what this machine can use, and why not the rest."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def main(argv: Sequence[str]) -> int:
    """Prints versions, devices and, for every part, the backend that ``auto`` takes and why others are out."""
    parser = argparse.ArgumentParser(prog="slca-fast doctor", description="Say what this machine can use and why not.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    findings = examine()
    if options.json:
        print(json.dumps(findings, indent=2))
        return 0
    console = Console()
    for title, rows in findings.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in rows.items():
            table.add_row(name, value)
        console.print(table)
        console.print()
    return 0


def examine() -> dict[str, dict[str, str]]:
    """Findings by topic: ``{"machine": {...}, "versions": {...}, "fast paths": {...}, "ops": {...}}``."""
    from slca_fast.machine.environment import device_description, pick_device, pick_precision, versions

    device = pick_device("auto")
    return {
        "machine": {
            "device": device_description(device),
            "precision": pick_precision("auto", device),
            "CPU threads": str(torch.get_num_threads()),
        },
        "versions": versions(),
        "fast paths": _fast_paths(device),
        "ops": _ops(device),
    }


def _fast_paths(device: torch.device) -> dict[str, str]:
    from slca_fast.training.optim import apex_optimizers, optimizer_backend

    cuda = device.type == "cuda"
    return {
        "CUDA": str(torch.version.cuda) if cuda else "no: torch sees no CUDA device",
        "native CPU library": _native_library(),
        "Triton": _importable("triton", "kernels run on CUDA; on a CPU only in its interpreter"),
        "DALI": _importable(
            "nvidia.dali",
            "decodes images",
            "install the extra: pip install slca-fast[dali]; images are decoded by Pillow without it",
        ),
        "NVIDIA apex": "yes" if apex_optimizers() is not None else "no: not installed, torch's fused optimizers serve",
        **_arithmetic(device),
        "optimizer": f"{optimizer_backend('sgd', device)}; {optimizer_backend('adamw', device)}",
    }


def _native_library() -> str:
    from slca_fast.kernels import native

    if reason := native.why_not():
        return f"no: {reason}"
    held = "held there by SLCA_FAST_NATIVE_ISA" if native.held_isa() else "the best that this processor has"
    return f"yes, on {native.isa()}: {held}"


def _arithmetic(device: torch.device) -> dict[str, str]:
    from slca_fast.machine.float32 import float32_products_backend
    from slca_fast.model.attention import cpu_bf16_units

    units = [name for name, found in cpu_bf16_units().items() if found]
    products, why = float32_products_backend(device)
    return {
        "bf16 units of the CPU": f"{', '.join(units)}: --runtime.precision bf16 pays" if units else "none",
        "fp32 products": f"{products}: {why}",
        **_execution(device),
    }


def _execution(device: torch.device) -> dict[str, str]:
    """How a run computes a plain ViT of timm's, by precision where that matters."""
    import timm

    from slca_fast.model.fast_path import choose

    vit = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0).to(device)
    by_precision = {precision: choose(vit, device, precision, None, compiled=None) for precision in ("fp32", "bf16")}
    rows = {}
    for part, row in (("compile", "torch.compile"), ("blocks", "transformer blocks"), ("attention", "attention")):
        said = {p: f"{chosen.backends()[part]} ({chosen.reasons[part]})" for p, chosen in by_precision.items()}
        same = len(set(said.values())) == 1
        rows[row] = said["fp32"] if same else "; ".join(f"{precision}: {text}" for precision, text in said.items())
    last = by_precision["fp32"].last_block
    return {**rows, "last block": f"{last} for timm's plain token-pooled ViTs; all tokens for others"}


def _importable(module: str, use: str, otherwise: str = "not installed") -> str:
    try:
        found: Any = importlib.import_module(module)
    except (ImportError, OSError) as error:
        return f"no: {otherwise} ({error})"
    return f"yes, {getattr(found, '__version__', '')}: {use}"


def _ops(device: torch.device) -> dict[str, str]:
    from slca_fast.ops.registry import automatic_backends

    return {name: f"{backend} ({why})" for name, (backend, why) in automatic_backends(device).items()}
