"""The choices of the fast path: attention, padding under the compiler, what a run says about them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import timm
import torch
from helpers import tiny_config, write_images
from hypothesis import given
from hypothesis import strategies as st

from slca_fast.errors import UserError
from slca_fast.experiment import Interrupted, run
from slca_fast.kernels.vit_block import fused, passes
from slca_fast.model import attention
from slca_fast.model import backbone as backbone_module
from slca_fast.model.attention import AttentionChoice, choose_attention
from slca_fast.model.backbone import Backbone
from slca_fast.model.cpu import stack as cpu_stack
from slca_fast.model.fast_path import BLOCKS, Execution, Remembered, choose
from slca_fast.model.head import Classifier
from slca_fast.training.stage1 import Stage1

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
CPU = torch.device("cpu")


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **TINY)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_fp32_is_never_measured(monkeypatch) -> None:
    monkeypatch.setattr(attention, "_measure", lambda *args: pytest.fail("measured"))
    assert choose_attention(vit(), CPU, "fp32", 8).name == "bmm"
    assert choose_attention(vit(), torch.device("cuda"), "fp32", 8).name == "sdpa"
    assert choose_attention(vit(), CPU, "bf16", 8, "bmm") == AttentionChoice("bmm", "asked for")


def test_bf16_is_measured_once_and_remembered(monkeypatch) -> None:
    model = vit()
    state = torch.get_rng_state()
    first = choose_attention(model, CPU, "bf16", 8)
    assert first.name in ("bmm", "sdpa") and "ms" in first.reason
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    monkeypatch.setattr(attention, "_measure", lambda *args: {"bmm": 9.0, "sdpa": 9.0})
    again = choose_attention(model, CPU, "bf16", 8)
    assert again.name == first.name and "measured earlier" in again.reason


def test_a_damaged_memory_is_measured_again(tmp_path) -> None:
    path = tmp_path / "cache/slca_fast/attention.json"
    path.parent.mkdir(parents=True)
    path.write_text("[not json")
    choice = choose_attention(vit(), CPU, "bf16", 8)
    assert choice.name in json.loads(path.read_text()).values()


def test_without_a_batch_size_nothing_is_measured(monkeypatch) -> None:
    monkeypatch.setattr(attention, "_measure", lambda *args: pytest.fail("measured"))
    assert choose_attention(vit(), CPU, "bf16", None).name == "sdpa"


def test_the_compiler_is_on_for_cuda_unless_told_otherwise() -> None:
    for device, compiled, expected in (("cpu", None, False), ("cuda", None, True), ("cpu", True, True)):
        chosen = choose(vit(), torch.device(device), "fp32", 8, compiled=compiled)
        assert chosen.compiled == expected
        assert chosen.backends()["compile"] == ("torch.compile" if expected else "off")
        assert chosen.reasons["compile"] == ("on for CUDA, off on the CPU" if compiled is None else "asked for")
        if expected:
            assert (chosen.blocks, chosen.reasons["blocks"]) == ("timm", "torch.compile makes the kernels")


@pytest.fixture
def native_products(monkeypatch) -> None:
    """Decides as on a machine whose native library can run the blocks and multiplies faster than torch."""
    monkeypatch.setattr(cpu_stack, "why_not", lambda blocks: None)
    monkeypatch.setattr(cpu_stack, "why_torch_multiplies", lambda blocks, dtype: None)


REMEMBERED = [
    (Remembered(), "auto", "bmm", "native products", "at once"),
    (Remembered("bmm", "native products"), "auto", "bmm", "native products", "at once"),
    (Remembered("bmm", "native passes"), "auto", "bmm", "native passes", "torch's products: as the run began"),
    (Remembered("bmm", "timm"), "auto", "bmm", "timm", "the run began with timm's"),
    (Remembered("sdpa", "timm"), "auto", "sdpa", "timm", "attention is sdpa"),
    (Remembered("sdpa", "timm"), "bmm", "bmm", "timm", "the run began with timm's"),
    (Remembered("cudnn", None), "auto", "bmm", "native products", "at once"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("remembered, asked, name, blocks, reason", REMEMBERED, ids=str)
def test_a_run_goes_on_with_what_it_began_with(
    native_products, remembered, asked, name, blocks, reason, precision
) -> None:
    chosen = choose(vit(), CPU, precision, 8, attention=asked, remembered=remembered)
    assert (chosen.attention, chosen.blocks, chosen.last_block) == (name, blocks, "class token")
    assert reason in chosen.reasons["blocks"]
    expected = "as the run began" if name == "sdpa" else "asked for" if asked != "auto" else "fixed: "
    assert chosen.reasons["attention"].startswith(expected)
    assert remembered.missing_in(chosen) is None


def test_what_the_run_began_with_and_this_machine_lacks_is_said(native_products, monkeypatch) -> None:
    monkeypatch.setattr(cpu_stack, "why_torch_multiplies", lambda blocks, dtype: "torch is faster here")
    remembered = Remembered("bmm", "native products")
    chosen = choose(vit(), CPU, "fp32", 8, remembered=remembered)
    assert chosen.blocks == "native passes"
    said = remembered.missing_in(chosen)
    assert "blocks by native products, which are missing here" in said and "torch is faster here" in said
    compiled = choose(vit(), CPU, "fp32", 8, compiled=True, remembered=remembered)
    assert "torch.compile makes the kernels" in remembered.missing_in(compiled)
    assert compiled.reasons["attention"].startswith("fixed in fp32")


@given(
    st.sampled_from(["fp32", "bf16"]),
    st.sampled_from(["sdpa", "bmm", "cudnn", "flash"]),
    st.sampled_from(BLOCKS),
    st.sampled_from(["class token", "all tokens"]),
    st.booleans(),
    st.dictionaries(st.text(), st.text()),
)
def test_an_execution_survives_json_and_contradictions_are_none(
    precision, name, blocks, last, compiled, reasons
) -> None:
    values = (precision, name, blocks, last, compiled, reasons)
    if blocks != "timm" and (name != "bmm" or last == "all tokens" or compiled):
        with pytest.raises(AssertionError):
            Execution(*values)
        return
    execution = Execution(*values)
    assert Execution.from_dict(json.loads(json.dumps(execution.to_dict()))) == execution


def test_blocks_that_another_rank_chose_and_this_one_lacks_are_refused(native_products, monkeypatch) -> None:
    backbone = Backbone(vit())
    chosen = choose(backbone.vit, CPU, "fp32", 8)
    assert chosen.blocks == "native products"
    monkeypatch.setattr(cpu_stack, "why_not", lambda blocks: "no native library")
    with pytest.raises(UserError, match=r"blocks by native products, which this rank cannot \(no native library\)"):
        backbone.use(chosen)


@pytest.mark.parametrize("num_images", [3, 4])
def test_padding_changes_neither_features_nor_gradients(monkeypatch, num_images: int) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    plain, padded = Backbone(vit().double()), Backbone(vit().double())
    padded.load_state_dict(plain.state_dict())
    padded.use(dataclasses.replace(padded.execution, compiled=True), num_training=4, num_evaluation=4)
    images = torch.randn(num_images, 3, 16, 16, dtype=torch.float64)
    upstream = torch.randn(num_images, 32, dtype=torch.float64)
    results = []
    for backbone in (plain, padded):
        features = backbone(images)
        features.backward(upstream)
        results.append([features, *(p.grad for p in backbone.parameters())])
    for ours, expected in zip(results[1], results[0]):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_a_compiled_run_compiles_once_and_equals_the_eager_one(tmp_path) -> None:
    images = write_images(tmp_path / "images")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    sizes = ("--tasks.sizes", "[2,1,1]")
    compiled = run(tiny_config(images, tmp_path / "compiled", *sizes, "--runtime.compile", "true"), preset="demo")
    # One graph for training and one for evaluation, whatever the heads and batches.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    eager = run(tiny_config(images, tmp_path / "eager", *sizes), preset="demo")
    assert compiled["phase_seconds"]["compile"] > 0 and eager["phase_seconds"]["compile"] == 0
    assert compiled["backends"]["compile"] == "torch.compile" and eager["backends"]["compile"] == "off"
    assert compiled["last_accuracy"] == pytest.approx(eager["last_accuracy"], abs=10)
    losses = []
    for name in ("compiled", "eager"):
        events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([e["loss"] for e in events if e["event"] == "epoch"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.skipif(passes.why_not() is not None, reason=str(passes.why_not()))
def test_a_batch_in_parts_has_the_gradients_and_the_loss_of_the_whole(monkeypatch, tmp_path) -> None:
    config = tiny_config(tmp_path, tmp_path / "run")
    images, label_B = torch.randn(7, 3, 16, 16), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    results = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for numbers, parts in ((10**9, 1), (3 * 5 * 32, 3)):
        monkeypatch.setattr(backbone_module, "PART_NUMBERS", numbers)
        backbone = Backbone(vit())
        backbone.use(choose(backbone.vit, CPU, "fp32", 7, attention="bmm"))
        assert backbone.execution.blocks.startswith("native")
        stage1 = Stage1(backbone, Classifier(32).grow(2, 0, CPU), None, config, 0, 0, "fp32")
        calls = []
        whole = stage1._loss
        monkeypatch.setattr(stage1, "_loss", lambda *args, whole=whole, calls=calls: calls.append(1) or whole(*args))
        loss_sum = stage1._backward(images, label_B, 7)
        assert len(calls) == parts
        results.append([loss_sum, *(p.grad for p in backbone.parameters())])
    for in_parts, at_once in zip(results[1], results[0]):
        torch.testing.assert_close(in_parts, at_once, rtol=2e-5, atol=1e-6)


def test_a_run_says_who_computes_its_blocks(tmp_path) -> None:
    images = write_images(tmp_path / "images")
    summaries = [
        run(tiny_config(images, tmp_path / name, "--tasks.sizes", "[2,2]", "--runtime.attention", name), preset="demo")
        for name in ("auto", "sdpa")
    ]
    reasons = [summary["backend_reasons"]["blocks"] for summary in summaries]
    assert summaries[1]["backends"]["blocks"] == "timm" and "attention is sdpa" in reasons[1]
    if passes.why_not() is None:
        by = "native products" if fused.why_not(torch.float32) is None else "native passes"
        assert summaries[0]["backends"]["blocks"] == by
        assert ("products by the native library" if by == "native products" else "between each two") in reasons[0]
        assert summaries[0]["backends"]["attention"] == "bmm"


def test_a_resumed_run_keeps_the_attention_that_was_measured_when_it_began(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cpu_stack, "why_not", lambda blocks: "not in this test")
    images = write_images(tmp_path / "images")
    config = tiny_config(images, tmp_path / "run", "--tasks.sizes", "[2,2]", "--runtime.precision", "bf16")
    monkeypatch.setattr(attention, "_measure", lambda *args: {"bmm": 9.0, "sdpa": 1.0})
    with pytest.raises(Interrupted):
        run(config, preset="demo", should_stop=lambda: True)
    (tmp_path / "cache/slca_fast/attention.json").unlink()
    monkeypatch.setattr(attention, "_measure", lambda *args: {"bmm": 1.0, "sdpa": 9.0})
    summary = run(config, preset="demo", resume=True)
    assert summary["backends"]["attention"] == "sdpa"
    assert summary["backend_reasons"]["attention"] == "as the run began"


@pytest.mark.skipif(
    passes.why_not() is not None or fused.why_not(torch.float32) is not None, reason="no own products here"
)
@pytest.mark.parametrize("began", ["native passes", "native products"])
def test_a_resumed_run_keeps_who_multiplied_when_it_began(monkeypatch, tmp_path, began) -> None:
    images = write_images(tmp_path / "images")
    config = tiny_config(images, tmp_path / "run", "--tasks.sizes", "[2,2]")
    missing = lambda blocks, dtype: "not in this test"  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        if began == "native passes":
            patch.setattr(cpu_stack, "why_torch_multiplies", missing)
        run(config, preset="demo", should_stop=lambda: True)
    if began == "native products":
        monkeypatch.setattr(cpu_stack, "why_torch_multiplies", missing)
    summary = run(config, preset="demo", resume=True)
    # What began with torch's products goes on with them; what is missing here cannot.
    assert summary["backends"]["blocks"] == "native passes"
