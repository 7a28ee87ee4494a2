"""Stacks of fused and composed blocks against timm's own in float64: values, every gradient, and none unasked for."""

from __future__ import annotations

import copy
import dataclasses
import statistics

import pytest
import timm
import torch
from torch import Tensor, nn

from slca_fast.benchmark.flops import gflop_of
from slca_fast.kernels import native
from slca_fast.kernels.vit_block import passes
from slca_fast.model.backbone import Backbone, autocast
from slca_fast.model.build import freeze_backbone
from slca_fast.model.class_token import set_attention
from slca_fast.model.cpu import composed_block, fused_block
from slca_fast.model.cpu.stack import NativeBlocks, why_not, why_torch_multiplies
from slca_fast.model.fast_path import choose
from slca_fast.model.lora import apply_lora, lora_layers

pytestmark = pytest.mark.skipif(passes.why_not() is not None, reason=str(passes.why_not()))
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
CPU = torch.device("cpu")


def make(lora: tuple[str, ...] = (), **kwargs) -> nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", **{**TINY, **kwargs})
    for parameter in vit.parameters():  # no gain of 1, no bias of 0 that would hide a mistake
        nn.init.normal_(parameter, std=0.3)
    if lora:
        apply_lora(vit, rank=3, targets=lora)
        for _, layer in lora_layers(vit):
            nn.init.normal_(layer.lora_B, std=0.3)
    set_attention(vit, "bmm")
    return vit


def results(blocks: nn.Sequential, run, tokens: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """Output and gradients by name; the tokens' own is called "tokens"."""
    torch.manual_seed(seed)
    tokens = tokens.clone().requires_grad_(True)
    blocks.zero_grad()
    out = run(blocks, tokens)
    out.backward(torch.randn(out.shape, dtype=torch.float64).to(out.dtype))
    gradients = {name: p.grad for name, p in blocks.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "tokens": tokens.grad, **gradients}


@pytest.fixture(params=["native", "torch"])
def products(request) -> str:
    return request.param


def timms(blocks: nn.Sequential, tokens: Tensor) -> Tensor:
    return blocks(tokens)


def distance(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def truth_of(blocks: nn.Sequential, tokens: Tensor) -> dict[str, Tensor]:
    return results(copy.deepcopy(blocks).double(), timms, tokens.double())


@pytest.mark.parametrize("lora", [(), ("qkv",), ("qkv", "proj", "fc1", "fc2")], ids=str)
@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (5, 17), (2, 65)], ids=str)
def test_fp32_values_and_every_gradient_are_timms_in_float64(products, shape, lora) -> None:
    blocks = make(lora).blocks
    tokens = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(2))
    ours, truth = results(blocks, NativeBlocks(torch.float32, products), tokens), truth_of(blocks, tokens)
    assert ours.keys() == truth.keys()
    for name in truth:
        assert distance(ours[name], truth[name]) < 3e-6, name


@pytest.mark.parametrize("lora", [(), ("qkv",)], ids=str)
def test_bf16_is_no_further_from_the_truth_than_autocast(products, lora) -> None:
    blocks = make(lora, embed_dim=48).blocks
    for parameter in blocks.parameters():
        parameter.data *= 0.3
    tokens = torch.randn(6, 17, 48, generator=torch.Generator().manual_seed(2))

    def with_autocast(blocks: nn.Sequential, tokens: Tensor) -> Tensor:
        with autocast("bf16", CPU):
            return blocks(tokens)

    ours, truth = results(blocks, NativeBlocks(torch.bfloat16, products), tokens), truth_of(blocks, tokens)
    theirs = results(blocks, with_autocast, tokens)
    ratios = {name: distance(ours[name], truth[name]) / distance(theirs[name], truth[name]) for name in truth}
    assert statistics.geometric_mean(ratios.values()) < 0.9  # the sums between two products are rounded less often
    assert max(ratios.values()) < 2, ratios


@pytest.mark.parametrize("trainable", ["hybrid", "head"])
def test_only_what_learns_gets_a_gradient(products, trainable: str) -> None:
    vit = make(("qkv",))
    freeze_backbone(vit, trainable)
    tokens = torch.randn(3, 5, 24)
    ours, truth = results(vit.blocks, NativeBlocks(torch.float32, products), tokens), truth_of(vit.blocks, tokens)
    assert ours.keys() == truth.keys()
    assert not any("fc1.weight" in name or "qkv.weight" in name for name in ours)
    for name in truth:
        assert distance(ours[name], truth[name]) < 3e-6, name


def test_a_model_runs_its_stack_natively_and_its_features_stay_the_same() -> None:
    vit = make()
    images = torch.randn(4, 3, 16, 16)
    truth = copy.deepcopy(vit).double()(images.double())
    backbone = Backbone(vit)
    by_sdpa = choose(vit, CPU, "fp32", 8, attention="sdpa")
    assert (by_sdpa.blocks, by_sdpa.reasons["blocks"]) == ("timm", "attention is sdpa, and they know bmm alone")
    for execution in (by_sdpa, choose(vit, CPU, "fp32", 8, attention="bmm")):
        backbone.use(execution)
        assert distance(backbone(images), truth) < 3e-6
        with torch.no_grad():
            assert distance(backbone(images), truth) < 3e-6
    assert backbone.execution.blocks.startswith("native")


def test_a_model_of_one_block() -> None:
    backbone = Backbone(make(depth=1))
    chosen = choose(backbone.vit, CPU, "fp32", 8)
    assert chosen.blocks.startswith("native")
    images = torch.randn(2, 3, 16, 16)
    for blocks in ("native products", "native passes"):
        backbone.use(dataclasses.replace(chosen, blocks=blocks))
        torch.testing.assert_close(backbone(images), backbone.vit(images), rtol=1e-5, atol=1e-5)


def test_a_model_without_position_embedding_passes_in_parts() -> None:
    backbone = Backbone(make(pos_embed="none"))
    backbone.use(choose(backbone.vit, CPU, "fp32", 8))
    assert backbone.execution.blocks.startswith("native")
    assert backbone.part_size(10**9) > 1
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(backbone(images), backbone.vit(images), rtol=1e-5, atol=1e-5)


def test_without_gradients_nothing_is_kept_for_a_backward(products, monkeypatch) -> None:
    engine = fused_block if products == "native" else composed_block
    kept, forward = [], engine.forward

    def watched(*args, **kwargs):
        out = forward(*args, **kwargs)
        kept.append(out[-1] is not None)
        return out

    monkeypatch.setattr(engine, "forward", watched)
    blocks, tokens = make().blocks, torch.randn(2, 5, 24)
    with torch.no_grad():
        out = NativeBlocks(torch.float32, products)(blocks, tokens)
    assert kept == [False] * 3
    assert torch.equal(NativeBlocks(torch.float32, products)(blocks, tokens), out) and kept[3:] == [True] * 3


@pytest.mark.parametrize("lora", [(), ("qkv", "proj", "fc1", "fc2")], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 5), (9, 65)], ids=str)
def test_the_first_token_and_every_gradient_are_timms_in_float64(products, shape, lora) -> None:
    blocks = make(lora).blocks
    tokens = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(2))

    def first_of_timms(blocks: nn.Sequential, tokens: Tensor) -> Tensor:
        return blocks(tokens)[:, :1]

    truth = results(copy.deepcopy(blocks).double(), first_of_timms, tokens.double())
    ours = results(blocks, NativeBlocks(torch.float32, products).first_token, tokens)
    assert ours.keys() == truth.keys()
    for name in truth:
        if truth[name].norm() > 1e-12:  # with one token nothing depends on queries and keys
            assert distance(ours[name], truth[name]) < 3e-6, name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("heads, dim, mlp_ratio", [(1, 2, 1), (2, 10, 3), (3, 48, 2), (5, 32, 4)])
def test_fused_blocks_at_odd_sizes_on_every_instruction_set(isa, dtype, tolerance, heads, dim, mlp_ratio) -> None:
    blocks = make(embed_dim=heads * dim, num_heads=heads, mlp_ratio=mlp_ratio, depth=2).blocks
    for parameter in blocks.parameters():
        parameter.data *= 0.3
    tokens = torch.randn(3, 19, heads * dim, generator=torch.Generator().manual_seed(2))
    ours, truth = results(blocks, NativeBlocks(dtype, "native"), tokens), truth_of(blocks, tokens)
    # A norm of two values makes +-1 of them, so what goes back through it is little but rounding.
    tolerance *= 3 if heads * dim == 2 else 1
    for name in truth:
        # The bias of the keys moves no probability: its gradient is 0 but for rounding.
        if "qkv.bias" not in name:
            assert distance(ours[name], truth[name]) < tolerance, name


def test_nothing_of_fused_blocks_depends_on_the_number_of_threads() -> None:
    blocks, tokens = make(("qkv",), embed_dim=48).blocks, torch.randn(23, 17, 48)
    before = torch.get_num_threads()
    try:
        for dtype in passes.DTYPES:
            torch.set_num_threads(1)
            one = results(blocks, NativeBlocks(dtype, "native"), tokens)
            one = {name: value.clone() for name, value in one.items()}
            torch.set_num_threads(3)
            three = results(blocks, NativeBlocks(dtype, "native"), tokens)
            # torch's own products of LoRA's thin factors are not ours to order.
            assert all(torch.equal(one[name], three[name]) for name in one if "lora_A" not in name)
    finally:
        torch.set_num_threads(before)


def test_fused_blocks_count_their_products_as_torch_counts_its_own() -> None:
    blocks, tokens = make().blocks, torch.randn(3, 17, 24)
    gflop = [gflop_of(lambda p=p: results(blocks, NativeBlocks(torch.float32, p), tokens)) for p in ("native", "torch")]
    assert gflop[0] == gflop[1] > 0


def test_why_torch_multiplies(monkeypatch) -> None:
    blocks = make(embed_dim=9, num_heads=3).blocks
    monkeypatch.setattr(native, "isa", lambda: "avx512bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert why_torch_multiplies(blocks, torch.float32) is None
    assert "goes in pairs" in why_torch_multiplies(blocks, torch.bfloat16)
    assert why_torch_multiplies(make().blocks, torch.bfloat16) is None
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert "AMX" in why_torch_multiplies(make().blocks, torch.bfloat16)
    assert why_torch_multiplies(make().blocks, torch.float32) is None
    monkeypatch.setattr(native, "isa", lambda: "generic")
    assert "slow on generic" in why_torch_multiplies(make().blocks, torch.float32)


@pytest.mark.parametrize("dims", [(1, 0, 2), (2, 1, 0), (0, 2, 1)], ids=str)
def test_a_permuted_upstream_gradient_is_read_in_its_order(products, dims) -> None:
    blocks = make().blocks

    def permuted(run):
        return lambda blocks, tokens: run(blocks, tokens).permute(*dims).reshape(-1)

    tokens = torch.randn(3, 5, 24)
    truth = results(copy.deepcopy(blocks).double(), permuted(timms), tokens.double())
    ours = results(blocks, permuted(NativeBlocks(torch.float32, products)), tokens)
    for name in truth:
        assert distance(ours[name], truth[name]) < 3e-6, name


def test_a_second_backward_pass_is_refused(products) -> None:
    out = NativeBlocks(torch.float32, products)(make().blocks, torch.randn(2, 5, 24)).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward pass again"):
        out.backward()


def test_another_default_dtype_changes_nothing(products) -> None:
    blocks, tokens = make().blocks, torch.randn(2, 5, 24)
    expected = results(blocks, NativeBlocks(torch.float32, products), tokens)
    expected = {name: value.clone() for name, value in expected.items()}
    torch.set_default_dtype(torch.float16)
    try:
        found = results(blocks, NativeBlocks(torch.float32, products), tokens)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(
    "kwargs, reason",
    [
        ({"init_values": 0.5}, "layer scales"),
        ({"qk_norm": True}, "norms inside attention"),
        ({"proj_drop_rate": 0.1}, "dropout"),
        ({"drop_path_rate": 0.1}, "dropped paths"),
        ({"qkv_bias": False}, "has no bias"),
        ({"act_layer": "relu"}, "ReLU"),
    ],
)
def test_blocks_it_does_not_know_are_refused_with_the_reason(kwargs: dict, reason: str) -> None:
    assert reason in why_not(make(**kwargs).blocks)


def test_unmerged_lora_and_other_dtypes_are_refused() -> None:
    vit = make()
    apply_lora(vit, rank=2, form="unmerged")
    assert "not merged" in why_not(vit.blocks)
    assert "float32" in why_not(make().double().blocks)


def test_a_parameter_changed_between_forward_and_backward_is_an_error(products) -> None:
    blocks = make().blocks
    out = NativeBlocks(torch.float32, products)(blocks, torch.randn(2, 5, 24))
    with torch.no_grad():
        blocks[0].mlp.fc1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivatives_are_refused(products) -> None:
    tokens = torch.randn(2, 5, 24, requires_grad=True)
    out = NativeBlocks(torch.float32, products)(make().blocks, tokens)
    (gradient,) = torch.autograd.grad(out.square().sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_kept_weights_serve_until_the_end_of_the_block_and_no_longer(products) -> None:
    blocks, tokens, run = make(("qkv",)).blocks, torch.randn(2, 5, 24), NativeBlocks(torch.bfloat16, products)
    before = run(blocks, tokens)
    with run.keeping_weights():
        assert torch.equal(run(blocks, tokens), before) and torch.equal(run(blocks, tokens), before)
    with torch.no_grad():
        blocks[1].attn.qkv.lora_B.add_(1)
    assert not torch.equal(run(blocks, tokens), before)
