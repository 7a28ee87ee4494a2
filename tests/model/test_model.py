"""LoRA, final norm, heads and weight files against plain linear algebra and plain timm."""

from __future__ import annotations

import copy
import inspect
import time

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from slca_fast.config import LOADER_ARGUMENTS, LoraConfig, ModelConfig
from slca_fast.errors import UserError
from slca_fast.model.build import build_backbone
from slca_fast.model.head import Classifier, LinearClassifier
from slca_fast.model.lora import (
    LoraLinear,
    apply_lora,
    lora_layers,
    merge_lora,
    merged_state,
    top_right_singular_vectors,
)

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def config(**changes) -> ModelConfig:
    return ModelConfig(**{"name": "vit_tiny_patch16_224", "pretrained": False, "kwargs": TINY, **changes})


def plain_vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)


def test_lora_init_spans_the_svds_leading_vectors_up_to_sign() -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 32)
    ours = top_right_singular_vectors(weight, 4)
    theirs = torch.linalg.svd(weight.double()).Vh[:4].float()
    signs = (ours * theirs).sum(1).sign()
    torch.testing.assert_close(ours * signs[:, None], theirs, rtol=1e-5, atol=1e-6)


def test_lora_starts_as_the_identity_and_merges_exactly() -> None:
    vit, images = plain_vit().eval(), torch.randn(3, 3, 16, 16)
    before = vit(images)
    apply_lora(vit, rank=4, scale=0.8, targets=("qkv", "fc1"))
    assert len(list(lora_layers(vit))) == 4
    torch.testing.assert_close(vit(images), before, rtol=1e-5, atol=1e-6)
    for _, layer in lora_layers(vit):
        nn.init.normal_(layer.lora_B, std=0.1)
    changed = vit(images)
    assert not torch.allclose(changed, before, atol=1e-3)
    layer = vit.blocks[0].attn.qkv
    torch.testing.assert_close(layer.merged_weight(), layer.weight + 0.8 * layer.lora_B @ layer.lora_A)
    merge_lora(vit)
    assert not any(isinstance(m, LoraLinear) for m in vit.modules())
    torch.testing.assert_close(vit(images), changed, rtol=1e-4, atol=1e-5)


def test_lora_refuses_unknown_targets_and_models_without_blocks() -> None:
    with pytest.raises(ValueError, match="unknown LoRA target 'qvk'"):
        apply_lora(plain_vit(), targets=("qvk",))
    with pytest.raises(ValueError, match="cannot be applied"):
        apply_lora(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="rank 40 exceeds"):
        apply_lora(plain_vit(), rank=40)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_features_are_timms_own(pool: str) -> None:
    kwargs = {**TINY, "global_pool": pool} | ({"class_token": False} if pool == "avg" else {})
    backbone = build_backbone(config(kwargs=kwargs, reset_final_norm=False), 16, seed=3).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = backbone.vit.forward_features(images)
    expected = tokens[:, 0] if pool == "token" else backbone.vit.fc_norm(tokens.mean(1))
    torch.testing.assert_close(backbone(images), expected)


def test_final_norm_is_fresh_with_eps_1e_5() -> None:
    norm = build_backbone(config(), 16, seed=0).vit.norm
    assert norm.eps == 1e-5 and bool((norm.weight == 1).all()) and bool((norm.bias == 0).all())
    assert build_backbone(config(reset_final_norm=False), 16, seed=0).vit.norm.eps == 1e-6


def test_fresh_weights_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = build_backbone(config(), 16, seed=1)
    assert torch.equal(torch.rand(3), expected)
    b, c = build_backbone(config(), 16, seed=1), build_backbone(config(), 16, seed=2)
    assert torch.equal(a.vit.cls_token, b.vit.cls_token) and not torch.equal(a.vit.pos_embed, c.vit.pos_embed)


def test_heads_are_truncated_normal_and_only_the_newest_learns() -> None:
    classifier = Classifier(64)
    for size in (50, 3, 40):
        classifier.grow(size, seed=1, device=torch.device("cpu"))
    weights = torch.cat([h.weight.detach().flatten() for h in classifier.heads])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05) and weights.mean().abs() < 1e-3
    assert all((h.bias == 0).all() for h in classifier.heads)
    assert [h.weight.requires_grad for h in classifier.heads] == [False, False, True]
    assert classifier.task_sizes == (50, 3, 40)
    again = Classifier(64)
    again.grow(50, seed=1, device=torch.device("cpu"))
    assert torch.equal(again.heads[0].weight, classifier.heads[0].weight)


def test_folded_scales_equal_scaled_inputs() -> None:
    sizes, mu = (2, 3, 1), 0.02
    torch.manual_seed(0)
    heads = [nn.Linear(5, size).double() for size in sizes]
    features = torch.randn(7, 5, dtype=torch.float64)
    classifier = LinearClassifier(torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]), sizes)
    # SLCA++: head k of t sees its input times 1 + mu (t - k); the bias is not scaled.
    expected = torch.cat([head((1 + mu * (2 - k)) * features) for k, head in enumerate(heads)], dim=1)
    torch.testing.assert_close(classifier.folded(mu).scores(features), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("prefix", ["", "module.", "module.base_encoder.", "backbone."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_load_under_their_prefixes(tmp_path, prefix: str, suffix: str) -> None:
    vit = plain_vit(7)
    state = {prefix + name: tensor.clone() for name, tensor in vit.state_dict().items()}
    state |= {prefix + "head.weight": torch.zeros(4, 32), prefix + "head.bias": torch.zeros(4)}
    if "base_encoder" in prefix:
        state |= {"module.momentum_encoder." + name: torch.zeros_like(t) for name, t in vit.state_dict().items()}
        state |= {"module.predictor.0.weight": torch.zeros(3)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    loaded = build_backbone(config(checkpoint=str(path), reset_final_norm=False), 16, seed=0)
    for name, tensor in vit.state_dict().items():
        assert torch.equal(loaded.vit.state_dict()[name], tensor), name


def test_googles_npz_loads(tmp_path) -> None:
    vit = plain_vit(7)
    state = {k: v.numpy() for k, v in vit.state_dict().items()}
    dim, heads = 32, 2
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(2):
        block, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = block + "MultiHeadDotProductAttention_1/"
        qkv_w, qkv_b = state[ours + "attn.qkv.weight"], state[ours + "attn.qkv.bias"]
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * dim, (j + 1) * dim)
            arrays[attention + part + "/kernel"] = qkv_w[rows].T.reshape(dim, heads, dim // heads)
            arrays[attention + part + "/bias"] = qkv_b[rows].reshape(heads, dim // heads)
        arrays[attention + "out/kernel"] = state[ours + "attn.proj.weight"].T.reshape(heads, dim // heads, dim)
        arrays[attention + "out/bias"] = state[ours + "attn.proj.bias"]
        for j, norm in enumerate(("LayerNorm_0", "LayerNorm_2")):
            arrays[block + norm + "/scale"] = state[ours + f"norm{j + 1}.weight"]
            arrays[block + norm + "/bias"] = state[ours + f"norm{j + 1}.bias"]
        for j in range(2):
            arrays[block + f"MlpBlock_3/Dense_{j}/kernel"] = state[ours + f"mlp.fc{j + 1}.weight"].T
            arrays[block + f"MlpBlock_3/Dense_{j}/bias"] = state[ours + f"mlp.fc{j + 1}.bias"]
    np.savez(tmp_path / "google.npz", **arrays)
    loaded = build_backbone(config(checkpoint=str(tmp_path / "google.npz"), reset_final_norm=False), 16, seed=0)
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(loaded.vit.state_dict()[name], tensor, msg=name)


def test_unusable_checkpoints_get_one_line_each(tmp_path) -> None:
    other = timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**TINY, "embed_dim": 64})
    save_file(other.state_dict(), tmp_path / "wide.safetensors")
    half = {k: v for k, v in plain_vit().state_dict().items() if "blocks.1" not in k}
    save_file(half, tmp_path / "half.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    (tmp_path / "broken.pth").write_bytes(b"\x80\x04}q\x00.garbage")
    (tmp_path / "junk.pth").write_bytes(b"garbage")
    torch.save({"model": print}, tmp_path / "code.pth")
    for name, message in [
        ("wide.safetensors", "its width is 64 but --model.name has width 32"),
        ("half.safetensors", "12 of .* weights are missing"),
        ("broken.safetensors", "not a readable"),
        ("broken.pth", "model.checkpoint"),
        ("junk.pth", "damaged, or it holds more than plain tensors"),
        ("code.pth", "not loaded for safety|no weights found"),
        ("absent.pth", "no such file"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            build_backbone(config(checkpoint=str(tmp_path / name)), 16, seed=0)
        assert "\n" not in str(caught.value) and "--model.checkpoint" in str(caught.value)
        assert "weights_only" not in str(caught.value)


def test_wrong_models_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean vit_tiny_patch16_224"):
        build_backbone(config(name="vit_tiny_pach16_224", kwargs={}), 224, seed=0)
    with pytest.raises(UserError, match="img_size 16 differs from --data.image_size 32"):
        build_backbone(config(), 32, seed=0)
    for kwargs in ({}, {"img_size": 224, "patch_size": 8}):
        with pytest.raises(UserError, match="--model.name resnet18: not a vision transformer"):
            build_backbone(config(name="resnet18", kwargs=kwargs), 224, seed=0)
    with pytest.raises(UserError, match="model.kwargs"):
        build_backbone(config(kwargs={**TINY, "widht": 3}), 16, seed=0)


def test_offline_download_names_the_option_at_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"could not be downloaded.*--model.checkpoint"):
        build_backbone(ModelConfig(name="vit_tiny_patch16_224.augreg_in21k"), 224, seed=0)
    assert time.monotonic() - start < 20, "the client's own retries take 50 s"
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_without_finite_features_is_refused(value) -> None:
    with pytest.raises(UserError, match=r"--model.kwargs .*init_values.* not finite"):
        build_backbone(config(kwargs={**TINY, "init_values": value}), 16, seed=0)


def test_lora_needs_the_hybrid_learner() -> None:
    with pytest.raises(UserError, match=r"--model.lora.rank is 4.*hybrid"):
        ModelConfig(lora=LoraConfig(rank=4))


def test_merging_computes_what_the_forward_did_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(32, 48).bfloat16(), rank=4, scale=0.7)
    nn.init.normal_(layer.lora_B, std=0.1)
    x = torch.randn(64, 32, dtype=torch.bfloat16)
    assert torch.equal(merge_lora(nn.Sequential(layer))(x), layer(x))


def test_merging_keeps_who_learns_the_mode_and_a_root_that_is_itself_a_lora_layer() -> None:
    layer = LoraLinear(nn.Linear(6, 5), rank=2, scale=0.7).eval()
    merged = merge_lora(layer)
    assert type(merged) is nn.Linear and not merged.training
    assert not merged.weight.requires_grad and merged.bias.requires_grad
    assert merged.bias is not layer.bias
    vit = merge_lora(apply_lora(plain_vit().eval().requires_grad_(False)))
    assert not any(p.requires_grad for p in vit.parameters()) and not any(m.training for m in vit.modules())


@pytest.mark.parametrize("as_root", [False, True])
def test_the_merged_state_is_that_of_the_merged_model_and_leaves_the_model_alone(as_root: bool) -> None:
    model = LoraLinear(nn.Linear(6, 5), 2, 0.7) if as_root else apply_lora(plain_vit(), targets=("qkv", "fc2"))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.1)
    before = copy.deepcopy(model.state_dict())
    state, expected = merged_state(model), merge_lora(copy.deepcopy(model)).state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    assert not any(tensor.requires_grad for tensor in state.values())
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_lora_takes_one_target_by_name_and_refuses_to_be_applied_twice() -> None:
    vit = apply_lora(plain_vit(), targets="qkv")
    assert [name for name, _ in lora_layers(vit)] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    with pytest.raises(ValueError, match="LoRA is already applied to blocks.0.attn.qkv"):
        apply_lora(vit, targets=("fc1",))


def test_an_unknown_tag_and_a_word_for_a_flag_are_refused() -> None:
    with pytest.raises(UserError, match=r"no weights 'nosuchtag' of vit_tiny_patch16_224; it has augreg_in21k"):
        build_backbone(config(name="vit_tiny_patch16_224.nosuchtag"), 16, seed=0)
    for flag in ("qkv_bias", "class_token", "fc_norm"):
        with pytest.raises(UserError, match=rf"--model.kwargs.{flag} is 'maybe': give true or false"):
            build_backbone(config(kwargs={**TINY, flag: "maybe"}), 16, seed=0)
    assert build_backbone(config(kwargs={**TINY, "qkv_bias": False}), 16, seed=0).vit.blocks[0].attn.qkv.bias is None


def test_every_argument_with_which_timm_loads_is_refused() -> None:
    """What timm's own entrances take besides the model's arguments."""
    entrances = (timm.create_model, timm.models.build_model_with_cfg)
    taken = {name for entrance in entrances for name in inspect.signature(entrance).parameters}
    assert taken - {"kwargs", "model_cls"} <= LOADER_ARGUMENTS
