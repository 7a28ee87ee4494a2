"""Checkpoints whose weights do not all have a place, other token layouts, and what is said about resampling."""

from __future__ import annotations

import numpy
import pytest
import timm
import torch

from slca_fast.errors import UserError
from slca_fast.model.weights import load_checkpoint

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 0}


def vit(name: str = "vit_tiny_patch16_224", **changes) -> torch.nn.Module:
    return timm.create_model(name, **{**SMALL, **changes})


def saved(tmp_path, state) -> str:
    torch.save(state, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


@pytest.mark.parametrize("changes", [{"init_values": 0.1}, {"qk_norm": True}], ids=str)
def test_weights_without_a_place_are_refused_by_name(tmp_path, changes) -> None:
    path = saved(tmp_path, vit(**changes).state_dict())
    with pytest.raises(UserError, match=r"no place for \d+ of its weights \(first: .*(ls1|q_norm)"):
        load_checkpoint(vit(), path)


@pytest.mark.parametrize("name", ["head.weight", "decoder_blocks.0.weight", "mask_token", "text.x", "logit_scale"])
def test_heads_decoders_masks_and_text_towers_are_left_out(tmp_path, name) -> None:
    model, state = vit(), vit().state_dict()
    load_checkpoint(model, saved(tmp_path, {**state, name: torch.zeros(1, 1, 24)}))
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.base_encoder."])
def test_wrappers_are_taken_off(tmp_path, wrapper) -> None:
    model, state = vit(), vit().state_dict()
    load_checkpoint(model, saved(tmp_path, {wrapper + key: tensor for key, tensor in state.items()}))
    assert torch.equal(model.state_dict()["pos_embed"], state["pos_embed"])


def test_resampling_is_said(tmp_path) -> None:
    said: list[str] = []
    load_checkpoint(vit(), saved(tmp_path, vit(patch_size=16, img_size=96).state_dict()), said.append)
    assert len(said) == 2 and "patch kernel resampled from 16x16 px to 8x8 px" in said[0]
    assert "position embedding resampled from 37 tokens to 17 tokens" in said[1]
    said.clear()
    load_checkpoint(vit(), saved(tmp_path, vit().state_dict()), said.append)
    assert not said


@pytest.mark.parametrize(
    "source, changes",
    [
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"img_size": (32, 48)}),
        ("deit3_small_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    ],
    ids=str,
)
def test_another_token_layout_loads_exactly_or_is_refused_in_one_line(tmp_path, source, changes) -> None:
    path = saved(tmp_path, vit(source, **changes).state_dict())
    with pytest.raises(UserError, match=r"--model.checkpoint") as refusal:
        load_checkpoint(vit(), path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("cls_token", torch.tensor(0.0)),
        ("pos_embed", torch.zeros(24)),
        ("patch_embed.proj.weight", torch.zeros(24, 3)),
        ("norm.weight", torch.ones(24, dtype=torch.complex64)),
        ("norm.weight", torch.ones(24).to_sparse()),
        ("norm.weight", torch.empty(24, device="meta")),
    ],
    ids=str,
)
def test_a_weight_of_another_kind_is_refused_in_one_line(tmp_path, name, tensor) -> None:
    path = saved(tmp_path, {**vit().state_dict(), name: tensor})
    with pytest.raises(UserError, match=r"^--model\.checkpoint .*w") as refusal:
        load_checkpoint(vit(), path)
    assert "\n" not in str(refusal.value)


def test_keys_that_are_no_names_are_left_out(tmp_path) -> None:
    load_checkpoint(vit(), saved(tmp_path, {**vit().state_dict(), 0: torch.zeros(3)}))


def test_arrays_of_another_layout_are_refused_by_file(tmp_path) -> None:
    numpy.savez(tmp_path / "w.npz", **{"embedding/kernel": numpy.array(["text"])})
    with pytest.raises(UserError, match="w.npz: does not fit"):
        load_checkpoint(vit(), tmp_path / "w.npz")
