"""Which attention implementation runs: a fixed rule in fp32, a short measurement per device and shape in bf16.

The measurement is kept in a file, so that later runs on the same machine (a resumed one above all) choose alike; in
fp32, where one seed promises the same bits, nothing is measured.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers import Attention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from slca_fast.files import replace_json
from slca_fast.machine.environment import cache_folder
from slca_fast.model.class_token import set_attention

# Implementations by device; bmm: two batched products and a softmax; sdpa: torch's own choice.
CANDIDATES = {"cpu": ("bmm", "sdpa"), "cuda": ("cudnn", "flash", "sdpa", "bmm")}
_KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_ROUNDS = 3
MOST_BMM_TOKENS = 256


@dataclass(frozen=True)
class AttentionChoice:
    """An implementation and, in words, why it was chosen."""

    name: str
    reason: str


def attention_kernels(name: str) -> AbstractContextManager:
    """To be entered around every forward pass of a model on which ``set_attention`` set ``name``."""
    return sdpa_kernel([_KERNELS[name], SDPBackend.MATH]) if name in _KERNELS else nullcontext()


def choose_attention(
    vit: nn.Module,
    device: torch.device,
    precision: str,
    num_images: int | None,
    requested: str = "auto",
    native_blocks: bool = False,
) -> AttentionChoice:
    """The implementation for ``vit`` on ``device`` with batches of ``num_images``; nothing is measured without it.

    ``precision`` is "fp32" or "bf16" (autocast). ``requested`` other than "auto" is taken as it is.
    ``native_blocks``: whether the native library could run the blocks, which it does with "bmm" alone.
    """
    if requested != "auto":
        return AttentionChoice(requested, "asked for")
    layers = [module for module in vit.modules() if type(module) is Attention]
    if not layers:
        return AttentionChoice("sdpa", "the model has no attention layer of timm's plain kind")
    position = getattr(vit, "pos_embed", None)
    num_tokens = 197 if position is None else position.shape[1]
    if native_blocks and num_tokens <= MOST_BMM_TOKENS:
        return AttentionChoice("bmm", "fixed: the native passes take no other")
    if precision == "fp32":
        # torch's fused CPU attention multiplies by MKL, products through oneDNN are faster while the scores stay small.
        small = device.type == "cpu" and num_tokens <= MOST_BMM_TOKENS
        return AttentionChoice("bmm" if small else "sdpa", "fixed in fp32, where one seed gives the same bits")
    if num_images is None:
        return AttentionChoice("sdpa", "torch's own, until a run measures which is the fastest")
    shape = f"{num_images}x{num_tokens}x{layers[0].num_heads}x{layers[0].head_dim}"
    key = f"{_device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {precision}, {shape}"
    known = _remembered()
    if key in known:
        return AttentionChoice(known[key], f"measured earlier for {shape}")
    elapsed_ms = _measure(layers[0], device, num_images, num_tokens)
    best = min(elapsed_ms, key=elapsed_ms.__getitem__)
    _remember({**known, key: best})
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in elapsed_ms.items())
    return AttentionChoice(best, f"measured for {shape}: {times}")


def _measure(layer: Attention, device: torch.device, num_images: int, num_tokens: int) -> dict[str, float]:
    """Milliseconds of forward and backward of one layer by implementation; those that cannot run are left out."""
    layer = copy.deepcopy(layer).requires_grad_(True).train()
    # A few images tell the same on a CPU as many, sooner.
    num_images = num_images if device.type == "cuda" else min(num_images, 16)
    width = layer.qkv.in_features
    x = torch.zeros(num_images, num_tokens, width, device=device).requires_grad_(True)
    elapsed_ms: dict[str, float] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(_ROUNDS):
            for name in CANDIDATES[device.type]:
                try:
                    ms = _step_ms(layer, name, x, device)
                except RuntimeError:
                    # Not every kernel serves every shape and device; SDPA names none by an exception class.
                    continue
                elapsed_ms[name] = min(elapsed_ms.get(name, ms), ms)
    return elapsed_ms


def _step_ms(layer: Attention, name: str, x: torch.Tensor, device: torch.device) -> float:
    set_attention(layer, name)
    with _synchronised(device) as started:
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16), attention_kernels(name):
            layer(x).sum().backward()
    return (time.perf_counter() - started) * 1e3


@contextmanager
def _synchronised(device: torch.device) -> Iterator[float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    yield time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    has = [name for name, found in cpu_bf16_units().items() if found]
    return f"cpu {torch.backends.cpu.get_cpu_capability()} {' '.join(has)}".strip()


def cpu_bf16_units() -> dict[str, bool]:
    """Which bf16 arithmetic units this CPU has."""
    return {
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "avx512_bf16": bool(torch.cpu._is_avx512_bf16_supported()),
    }


def _cache_file() -> Path:
    return cache_folder() / "attention.json"


def _remembered() -> dict[str, str]:
    try:
        return {str(k): str(v) for k, v in json.loads(_cache_file().read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(choices: dict[str, str]) -> None:
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        replace_json(_cache_file(), choices)
    except OSError:
        # A home that cannot be written only costs the next run its measurement.
        return
