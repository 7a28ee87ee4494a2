"""Low-rank adaptation of a timm ViT's linear layers (SLCA++ "hybrid slow learner")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from slca_fast.ops.lora_linear import lora_linear

# Where timm keeps each target inside a transformer block.
TARGET_PATHS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


class LoraLinear(nn.Linear):
    """A frozen linear layer plus ``scale * B A``; keeps the names ``weight`` and ``bias`` of the layer it replaces.

    ``lora_A`` is ``[rank, in]`` (the top right singular vectors of ``weight``), ``lora_B`` is ``[out, rank]`` (zeros).
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, form: str = "merged") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        self.scale, self.form = scale, form
        self.lora_A = nn.Parameter(top_right_singular_vectors(linear.weight.detach(), rank))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return lora_linear(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scale, form=self.form)

    def merged_weight(self) -> Tensor:
        """``W + scale * B A``, ``[out, in]`` in the weight's dtype."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_A.shape[0]}, scale={self.scale}"


def top_right_singular_vectors(weight_OI: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading right singular vectors of ``weight_OI`` as rows, ``[rank, I]``, largest first.

    Through the eigenvectors of the Gram matrix W^T W in float64: far cheaper than a full SVD, equal up to sign.
    """
    if rank > min(weight_OI.shape):
        raise ValueError(
            f"LoRA rank {rank} exceeds the {min(weight_OI.shape)} singular vectors of a {list(weight_OI.shape)} weight"
        )
    weight = weight_OI.double()
    _, vectors = torch.linalg.eigh(weight.T @ weight)
    return vectors.flip(1)[:, :rank].T.contiguous().to(weight_OI.dtype)


def apply_lora(
    model: nn.Module, rank: int = 4, scale: float = 0.8, targets: Sequence[str] = ("qkv",), form: str = "merged"
) -> nn.Module:
    """Puts LoRA on the ``targets`` (of "qkv", "proj", "fc1", "fc2") of every block of a timm ViT, in place.

    Returns ``model``. Raises ValueError for an unknown target, a rank below 1, or a model without such layers.
    """
    if rank < 1:
        raise ValueError(f"LoRA rank must be at least 1, got {rank}")
    unknown = [target for target in targets if target not in TARGET_PATHS]
    if unknown:
        raise ValueError(f"unknown LoRA target {unknown[0]!r}: choose from {', '.join(TARGET_PATHS)}")
    found = 0
    for block in getattr(model, "blocks", ()):
        for target in targets:
            parent_path, leaf = TARGET_PATHS[target].rsplit(".", 1)
            try:
                parent = block.get_submodule(parent_path)
            except AttributeError:
                continue
            linear = getattr(parent, leaf, None)
            if isinstance(linear, nn.Linear) and not isinstance(linear, LoraLinear):
                setattr(parent, leaf, LoraLinear(linear, rank, scale, form))
                found += 1
    if found == 0:
        raise ValueError(f"{type(model).__name__} has no blocks with {', '.join(targets)}: LoRA cannot be applied")
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Replaces every LoraLinear by a plain linear layer with the merged weight, in place; returns ``model``."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                linear = nn.Linear(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    device=child.weight.device,
                    dtype=child.weight.dtype,
                )
                with torch.no_grad():
                    linear.weight.copy_(child.merged_weight())
                    if child.bias is not None:
                        linear.bias.copy_(child.bias)
                setattr(module, name, linear)
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every LoRA layer of ``model`` with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))
