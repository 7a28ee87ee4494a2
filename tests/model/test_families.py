"""Families of timm's vision transformers: each works with every parameter that is said to learn, or is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from slca_fast.config import LoraConfig, ModelConfig
from slca_fast.errors import UserError
from slca_fast.model.build import build_backbone

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
FAMILIES = {
    "vit_tiny_patch16_224": SMALL,
    "vit_base_patch16_reg4_gap_256": SMALL,
    "vit_base_patch16_rope_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "beitv2_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": {**SMALL, "patch_size": 16},
    "cait_xxs24_224": {**SMALL, "depth": 2},
    "vit_medium_patch16_gap_240": SMALL,
    "vit_relpos_small_patch16_224": SMALL,
    "vit_small_patch16_18x2_224": SMALL,
    "aimv2_large_patch14_224": {**SMALL, "patch_size": 16},
    "samvit_base_patch16_224": {**SMALL, "global_attn_indexes": (1,)},
    "flexivit_small": SMALL,
    "crossvit_tiny_240": {},
}


def config_of(name: str, **changes) -> ModelConfig:
    return ModelConfig(name=name, pretrained=False, kwargs=FAMILIES[name], **changes)


@pytest.mark.parametrize("trainable", ["full", "hybrid", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_that_is_said_to_learn_gets_a_gradient(name: str, trainable: str) -> None:
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    lora = LoraConfig(rank=2 if trainable == "lora" else 0)
    config = config_of(name, trainable="full" if trainable == "full" else "hybrid", lora=lora, reset_final_norm=False)
    try:
        backbone = build_backbone(config, 32, 0)
    except UserError as refusal:
        assert str(refusal).startswith("--model."), refusal
        return
    state = torch.random.get_rng_state()
    backbone.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
    torch.random.set_rng_state(state)
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    if trainable == "lora":
        layers = [n for n, p in backbone.named_parameters() if n.endswith("lora_B") and p.grad.abs().max() > 0]
        assert len(layers) == sum(n.endswith("lora_B") for n, _ in backbone.named_parameters()) > 0


def test_lora_that_the_attention_goes_around_is_refused() -> None:
    config = config_of("beit_base_patch16_224", trainable="hybrid", lora=LoraConfig(rank=2))
    with pytest.raises(UserError, match=r"--model.lora: the attention of beit_base_patch16_224 goes around"):
        build_backbone(config, 32, 0)


@pytest.mark.parametrize(
    "kwargs",
    [{"in_chans": 1}, {"global_pool": ""}, {"num_heads": 0}, {"patch_size": 0}, {"patch_size": 64}, {"embed_dim": 0}],
    ids=str,
)
def test_a_model_that_cannot_take_the_images_is_refused_by_name(kwargs) -> None:
    config = ModelConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs={**SMALL, **kwargs})
    with pytest.raises(UserError, match="--model."):
        build_backbone(config, 32, 0)


def test_the_trial_leaves_no_gradient_and_no_random_number() -> None:
    before = torch.random.get_rng_state()
    backbone = build_backbone(config_of("vit_tiny_patch16_224"), 32, 0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert isinstance(backbone.vit, nn.Module) and backbone.training
