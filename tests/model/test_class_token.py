"""The class-token-only last block against timm's own forward and backward in float64."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from slca_fast.model.backbone import Backbone
from slca_fast.model.class_token import class_token_features, plain_features, set_attention, why_not
from slca_fast.model.lora import apply_lora, lora_layers

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def make(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", **{**TINY, **kwargs}).double()
    for parameter in vit.parameters():  # no gain of 1, no bias of 0 that would hide a mistake
        nn.init.normal_(parameter, std=0.3)
    return vit


def features_and_gradients(vit: nn.Module, forward) -> list[torch.Tensor]:
    torch.manual_seed(1)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    features = forward(vit, images)
    wanted = [images, *(p for p in vit.parameters() if p.requires_grad)]
    return [features, *torch.autograd.grad(features, wanted, torch.randn_like(features))]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"depth": 1},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"init_values": 0.5},
        {"reg_tokens": 3},
        {"no_embed_class": True},
        {"pre_norm": True},
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "bmm"])
def test_features_and_every_gradient_are_timms(kwargs: dict, attention: str) -> None:
    vit = make(**kwargs)
    set_attention(vit, attention)
    assert why_not(vit) is None
    for ours, timms in zip(
        features_and_gradients(vit, class_token_features), features_and_gradients(vit, plain_features)
    ):
        torch.testing.assert_close(ours, timms, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", ["merged", "unmerged"])
def test_lora_on_the_last_blocks_qkv_stays_exact(form: str) -> None:
    vit = make()
    apply_lora(vit, rank=3, targets=("qkv", "fc1"), form=form)
    for _, layer in lora_layers(vit):
        nn.init.normal_(layer.lora_B, std=0.3)
    for ours, timms in zip(
        features_and_gradients(vit, class_token_features), features_and_gradients(vit, plain_features)
    ):
        torch.testing.assert_close(ours, timms, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "kwargs, reason",
    [
        ({"global_pool": "avg", "class_token": False}, "pools by avg"),
        ({"proj_drop_rate": 0.1}, "dropout"),
        ({"patch_drop_rate": 0.25}, "drops patches"),
        ({"global_pool": "map", "class_token": False}, "pools by attention"),
    ],
)
def test_what_it_does_not_know_runs_timms_way_and_says_why(kwargs: dict, reason: str) -> None:
    vit = make(**kwargs).eval()
    backbone = Backbone(vit)
    assert backbone.execution.last_block == "all tokens" and reason in backbone.execution.reasons["last block"]
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(backbone(images), plain_features(vit, images), rtol=0, atol=0)


def test_another_architecture_runs_timms_way() -> None:
    backbone = Backbone(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0, img_size=32))
    assert "VisionTransformerDistilled" in backbone.execution.reasons["last block"]
