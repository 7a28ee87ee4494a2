"""Pre-train the embedded ViT on rendered letters: `python -m slca_fast.embedded.pretrain --output FILE`.

Writes float16 weights (timm names, no head) to FILE and a description to FILE with the suffix `.json`. One
seed gives the same bytes again on the same machine, library versions and thread count.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slca_fast.files import replace_bytes, replace_text

from .glyphs import ASCII_FONTS, CHARACTERS, MEAN, STD, UNICODE_FONTS, LetterBatches, build_atlas, learning_rate

MODEL_NAME = "vit_tiny_patch16_224"
MODEL_KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
MUON_LR, ADAMW_LR, WEIGHT_DECAY, LABEL_SMOOTHING = 4e-3, 2e-3, 0.05, 0.05
RAMP = 0.4  # share of the steps over which the distortions grow to full strength


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; parameters that need no gradient are left out."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and "blocks." in name else rest).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


@torch.no_grad()
def letter_accuracy(model: nn.Module, batches: LetterBatches, count: int) -> float:
    """Percent right on `count` fresh letters at full distortion (same fonts, another seed)."""
    model.eval()
    right = 0
    for n in [256] * (count // 256) + [count % 256] * bool(count % 256):
        image, label = batches(n)
        right += (model(image).argmax(1) == label).sum().item()
    model.train()
    return 100.0 * right / count


def pretrain(
    output: str | Path,
    *,
    steps: int = 2400,
    batch_size: int = 128,
    seed: int = 0,
    characters: str = CHARACTERS,
    fonts: tuple[str, ...] = UNICODE_FONTS + ASCII_FONTS,
    model_kwargs: dict | None = None,
    evaluate: int = 4096,
    log_every: int = 100,
) -> dict:
    """Train, write `output` (safetensors) and its `.json`, and return the description that the JSON holds.

    The final LayerNorm keeps weight 1 and bias 0, so a fresh one may replace it and features stay the same.
    Raises ValueError for digits among `characters`.
    """
    from safetensors.torch import save
    from timm import create_model

    output = Path(output)
    kwargs: dict[str, Any] = dict(MODEL_KWARGS if model_kwargs is None else model_kwargs)
    atlas = build_atlas(characters, fonts)
    torch.manual_seed(seed)
    model = create_model(MODEL_NAME, num_classes=len(characters), **kwargs)
    model.norm.requires_grad_(False)
    optimizers = make_optimizers(model)
    peaks = [group["lr"] for opt in optimizers for group in opt.param_groups]
    batches = LetterBatches(atlas, kwargs["img_size"], seed)
    started = time.perf_counter()
    for step in range(steps):
        batches.difficulty = min(1.0, 0.2 + 0.8 * step / max(1.0, RAMP * steps))
        factor = learning_rate(step, steps, 1.0)
        for group, peak in zip((g for opt in optimizers for g in opt.param_groups), peaks):
            group["lr"] = peak * factor
        image, label = batches(batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image).float()
        loss = F.cross_entropy(logits, label, label_smoothing=LABEL_SMOOTHING)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for opt in optimizers:
            opt.step()
        if log_every and (step + 1) % log_every == 0:
            right = (logits.argmax(1) == label).float().mean().item()
            print(f"step {step + 1}/{steps} loss {loss.item():.3f} batch accuracy {100 * right:.0f}% "
                  f"{time.perf_counter() - started:.0f}s", flush=True)  # fmt: skip

    weights = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")}
    model.load_state_dict(weights, strict=False)
    info = {
        "model_name": MODEL_NAME,
        "model_kwargs": kwargs,
        "mean": list(MEAN),
        "std": list(STD),
        "weights": {"dtype": "float16", "parameters": sum(v.numel() for v in weights.values())},
        "script": "slca_fast.embedded.pretrain",
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "images": steps * batch_size,
        "threads": torch.get_num_threads(),
        "data": "letters rendered and distorted on the fly; no digits, no photographs, no downloaded data",
        "characters": characters,
        "fonts": list(fonts),
        "font_source": "the fonts in matplotlib's package data: DejaVu (Bitstream Vera licence), STIX (SIL Open "
        "Font Licence), Computer Modern (BaKoMa fonts licence)",
        "letter_accuracy_percent": None,
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "pillow", "matplotlib", "scipy")},
    }
    if evaluate:
        held_out = LetterBatches(atlas, kwargs["img_size"], seed + 1_000_003)
        info["letter_accuracy_percent"] = round(letter_accuracy(model, held_out, evaluate), 2)
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(output, save(weights, metadata={"format": "pt"}))
    replace_text(output.with_suffix(".json"), json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    return info


def main(argv: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m slca_fast.embedded.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    info = pretrain(args.output, steps=args.steps, batch_size=args.batch_size, seed=args.seed)
    print(f"letters {info['letter_accuracy_percent']}% -> {args.output.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
