"""Low-rank adaptation of a timm ViT's linear layers (SLCA++ "hybrid slow learner")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from slca_fast.kernels.lora_linear.reference import merged_weight
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
        self.training = linear.training
        self.lora_A = nn.Parameter(top_right_singular_vectors(linear.weight.detach(), rank))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return lora_linear(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scale, form=self.form)

    def merged_weight(self) -> Tensor:
        """``W + scale * B A``, ``[out, in]`` in the weight's dtype: summed in float32 and rounded once, as forward."""
        return merged_weight(self.weight, self.lora_A, self.lora_B, self.scale, self.weight.dtype)

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same; each parameter is trainable if it is here."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.merged_weight().detach(), self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return linear.train(self.training)

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
    model: nn.Module,
    rank: int = 4,
    scale: float = 0.8,
    targets: str | Sequence[str] = ("qkv",),
    form: str = "merged",
) -> nn.Module:
    """Puts LoRA on the ``targets`` (one or several of "qkv", "proj", "fc1", "fc2") of every block of a timm ViT.

    Works in place and returns ``model``. Raises ValueError for an unknown target, a rank below 1, a model without
    such layers, and a model that has LoRA.
    """
    if isinstance(targets, str):
        targets = (targets,)
    if rank < 1:
        raise ValueError(f"LoRA rank must be at least 1, got {rank}")
    unknown = [target for target in targets if target not in TARGET_PATHS]
    if unknown:
        raise ValueError(f"unknown LoRA target {unknown[0]!r}: choose from {', '.join(TARGET_PATHS)}")
    if applied := [name for name, _ in lora_layers(model)]:
        raise ValueError(f"LoRA is already applied to {applied[0]}: merge_lora first, or name all targets at once")
    found = 0
    for block in getattr(model, "blocks", ()):
        for target in targets:
            parent_path, leaf = TARGET_PATHS[target].rsplit(".", 1)
            try:
                parent = block.get_submodule(parent_path)
            except AttributeError:
                continue
            linear = getattr(parent, leaf, None)
            if isinstance(linear, nn.Linear):
                setattr(parent, leaf, LoraLinear(linear, rank, scale, form))
                found += 1
    if found == 0:
        raise ValueError(f"{type(model).__name__} has no blocks with {', '.join(targets)}: LoRA cannot be applied")
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Replaces every LoraLinear by its ``merged()`` layer, in place; returns ``model``, or what replaces it."""
    if isinstance(model, LoraLinear):
        return model.merged()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
    return model


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """``merge_lora(model).state_dict()``, but ``model`` keeps its LoRA; what is not merged shares memory with it."""
    state = dict(model.state_dict())
    for name, layer in lora_layers(model):
        prefix = f"{name}." if name else ""
        state[f"{prefix}weight"] = layer.merged_weight().detach()
        del state[f"{prefix}lora_A"], state[f"{prefix}lora_B"]
    return state


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every LoRA layer of ``model`` with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))
