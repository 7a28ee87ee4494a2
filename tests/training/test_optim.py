"""Schedules per epoch and group, and parameter groups, against values derived from the method."""

from __future__ import annotations

import math

import pytest
import torch

from slca_fast.config import LoraConfig, ModelConfig
from slca_fast.methods.presets import PRESETS
from slca_fast.model.build import build_backbone
from slca_fast.training.optim import learning_rate, make_optimizer, slow_learner_param_groups

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def tiny(trainable: str, rank: int = 0):
    config = ModelConfig(
        name="vit_tiny_patch16_224", pretrained=False, kwargs=TINY, trainable=trainable, lora=LoraConfig(rank=rank)
    )
    return build_backbone(config, 16, seed=0)


def test_slca_imagenet_r_drops_both_groups_after_epoch_40() -> None:
    optim = PRESETS["slca-imagenet-r-in21k"]().optim
    head = [learning_rate(optim, 0.01, epoch) for epoch in range(50)]
    backbone = [learning_rate(optim, 0.01 * 0.01, epoch) for epoch in range(50)]
    assert head == pytest.approx([0.01] * 40 + [0.001] * 10, rel=1e-12)
    assert backbone == pytest.approx([1e-4] * 40 + [1e-5] * 10, rel=1e-12)


def test_slcapp_cifar_follows_one_cosine_floor_in_every_group() -> None:
    optim = PRESETS["slcapp-cifar100-in21k"]().optim
    floor = 0.01 * 0.1 * 0.1
    for base in (0.01, 0.005, 0.001):
        rates = [learning_rate(optim, base, epoch) for epoch in range(20)]
        by_hand = [floor + (base - floor) * 0.5 * (1 + math.cos(math.pi * epoch / 20)) for epoch in range(20)]
        assert rates == pytest.approx(by_hand, rel=1e-12)
    assert learning_rate(optim, 0.01, 10) == pytest.approx((0.01 + floor) / 2, rel=1e-12)


def test_schedules_equal_torchs_schedulers() -> None:
    for name, milestones in (("slca-cub200-in21k", (40,)), ("slcapp-cub200-mocov3", (60, 80))):
        optim = PRESETS[name]().optim
        assert optim.milestones == milestones
        base = [0.01, 0.01 * optim.backbone_lr_scale]
        sgd = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in base], lr=0.01)
        if optim.schedule == "multistep":
            scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, list(milestones), 0.1)
        else:
            floor = 0.01 * optim.backbone_lr_scale * 0.1 ** len(milestones)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, optim.epochs, floor)
        for epoch in range(optim.epochs):
            ours = [learning_rate(optim, lr, epoch) for lr in base]
            assert ours == pytest.approx([group["lr"] for group in sgd.param_groups], rel=1e-9)
            sgd.step()
            scheduler.step()


def names_of(backbone, group) -> set[str]:
    wanted = {id(p) for p in group["params"]}
    return {name for name, p in backbone.vit.named_parameters() if id(p) in wanted}


def test_full_slow_learner_has_every_backbone_parameter_at_the_scaled_rate() -> None:
    backbone, head = tiny("full"), torch.nn.Linear(32, 2)
    groups = {
        g["name"]: g
        for g in slow_learner_param_groups(
            backbone, head.parameters(), lr=0.01, backbone_lr_scale=0.01, weight_decay=5e-4
        )
    }
    assert set(groups) == {"backbone", "head"}
    assert names_of(backbone, groups["backbone"]) == {name for name, _ in backbone.vit.named_parameters()}
    assert groups["backbone"]["lr"] == pytest.approx(1e-4) and groups["head"]["lr"] == 0.01
    assert all(g["weight_decay"] == 5e-4 for g in groups.values())


@pytest.mark.parametrize("first, lora_lr", [(True, 0.005), (False, 0.001)])
def test_hybrid_groups_by_name(first: bool, lora_lr: float) -> None:
    backbone, head = tiny("hybrid", rank=4), torch.nn.Linear(32, 2)
    groups = {
        g["name"]: g
        for g in slow_learner_param_groups(
            backbone, head.parameters(), lr=0.01, backbone_lr_scale=0.1, lora_lr_scale=0.5 if first else 0.1
        )
    }
    blocks = [f"blocks.{i}." for i in range(2)]
    assert names_of(backbone, groups["lora"]) == {b + "attn.qkv." + x for b in blocks for x in ("lora_A", "lora_B")}
    in_block = (
        "norm1.weight",
        "norm1.bias",
        "attn.qkv.bias",
        "attn.proj.bias",
        "norm2.weight",
        "norm2.bias",
        "mlp.fc1.bias",
        "mlp.fc2.bias",
    )
    assert names_of(backbone, groups["backbone"]) == {
        "cls_token",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
        *(b + n for b in blocks for n in in_block),
    }
    assert groups["lora"]["lr"] == pytest.approx(lora_lr)
    assert groups["backbone"]["lr"] == pytest.approx(0.001)


def test_lora_on_vit_b_has_the_published_number_of_parameters() -> None:
    config = PRESETS["slcapp-imagenet-r-in21k"]()
    from dataclasses import replace

    with torch.device("meta"):
        import timm

        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
    per_block = config.model.lora.rank * (vit.embed_dim + 3 * vit.embed_dim)
    assert per_block * len(vit.blocks) == 147_456
    assert replace(config.model.lora, rank=4) == config.model.lora


def test_head_only_leaves_nothing_of_the_backbone() -> None:
    groups = slow_learner_param_groups(tiny("head"), torch.nn.Linear(32, 2).parameters())
    assert [g["name"] for g in groups] == ["head"]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizer_steps_as_the_plain_one(name: str) -> None:
    from dataclasses import replace

    optim = replace(PRESETS["slca-cub200-in21k"]().optim, name=name)
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 3, dtype=torch.float64)) for _ in range(2))
    a = make_optimizer(optim, [{"params": [ours], "lr": 0.1, "weight_decay": 0.01}], torch.device("cpu"))
    cls, extra = (torch.optim.SGD, {"momentum": 0.9}) if name == "sgd" else (torch.optim.AdamW, {})
    b = cls([theirs], lr=0.1, weight_decay=0.01, foreach=False, fused=False, **extra)
    for _ in range(5):
        gradient = torch.randn(5, 3, dtype=torch.float64)
        for parameter, optimizer in ((ours, a), (theirs, b)):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_head_inside_the_backbone_learns_as_the_head_only() -> None:
    backbone = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    groups = slow_learner_param_groups(backbone, backbone[1].parameters(), lr=0.1, backbone_lr_scale=0.5)
    optimizer = torch.optim.SGD(groups)
    assert [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups] == [
        ("backbone", 0.05, 2), ("head", 0.1, 2)
    ]  # fmt: skip
    assert optimizer.param_groups[1]["params"][0] is backbone[1].weight
