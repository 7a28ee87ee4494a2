"""The LoRA linear layer against autograd in float64, and the promises that a frozen weight makes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slca_fast.kernels import native
from slca_fast.kernels.lora_linear import native_kernel, reference
from slca_fast.ops.lora_linear import FORMS, lora_linear

needs_native = pytest.mark.skipif(native.why_not(native_kernel.SYMBOL) is not None, reason="native library not built")


def make(lead=(3, 5), num_in=12, num_out=20, rank=4, dtype=torch.float64, param_dtype=None, bias=True):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(*lead, num_in).to(dtype).requires_grad_()
    param_dtype = param_dtype or dtype
    weight = (normal(num_out, num_in) * num_in**-0.5).to(param_dtype)
    bias_O = normal(num_out).to(param_dtype).requires_grad_() if bias else None
    lora_A = (normal(rank, num_in) * num_in**-0.5).to(param_dtype).requires_grad_()
    lora_B = normal(num_out, rank).to(param_dtype).requires_grad_()
    return x, weight, bias_O, lora_A, lora_B


def gradients(function, tensors, form, upstream, dtype=None):
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_(t.requires_grad) for t in tensors]
    y = function(*leaves, 0.8, form)
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, upstream.to(y.dtype))]


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=25)
@given(
    lead=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    num_in=st.integers(1, 17),
    num_out=st.integers(1, 17),
    rank=st.integers(1, 5),
    bias=st.booleans(),
)
def test_equals_autograd_in_float64_for_any_shape(form, lead, num_in, num_out, rank, bias):
    tensors = make(lead, num_in, num_out, rank, bias=bias)
    upstream = torch.randn(*lead, num_out, dtype=torch.float64)
    ours = gradients(lora_linear, tensors, form, upstream)
    truth = gradients(reference.lora_linear, tensors, form, upstream)
    for got, want in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@needs_native
def test_native_gives_the_same_bits_on_any_number_of_threads():
    tensors = make((333,), 24, 50, 5, torch.float32)
    upstream = torch.randn(333, 50)
    threads = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            grad_NO, u_NR = upstream, tensors[0].detach() @ tensors[3].detach().T
            results.append(native_kernel.thin_products(grad_NO, u_NR, tensors[4].detach()))
    finally:
        torch.set_num_threads(threads)
    for through, both in results[1:]:
        assert torch.equal(through, results[0][0]) and torch.equal(both, results[0][1])


@needs_native
def test_native_on_every_instruction_set():
    grad_NO, u_NR, B_OR = torch.randn(101, 67), torch.randn(101, 6), torch.randn(67, 6)
    want = reference.thin_products(grad_NO.double(), u_NR.double(), B_OR.double())
    isa = native.isa()
    try:
        for name in native.ISA_NAMES:
            native.set_isa(name)
            for got, truth in zip(native_kernel.thin_products(grad_NO, u_NR, B_OR), want, strict=True):
                torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)
    finally:
        native.set_isa(isa)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(form, bias):
    x, weight, bias_O, lora_A, lora_B = make((2, 3), 5, 6, 2, bias=bias)
    assert torch.autograd.gradcheck(
        lambda x, bias_O, lora_A, lora_B: lora_linear(x, weight, bias_O, lora_A, lora_B, 0.8, form),
        (x, bias_O, lora_A, lora_B),
    )


@pytest.mark.parametrize("form", FORMS)
def test_needs_only_what_is_asked(form):
    tensors = make()
    upstream = torch.randn(3, 5, 20, dtype=torch.float64)
    truth = gradients(reference.lora_linear, tensors, form, upstream)[1:]
    for wanted in range(1, 16):
        x, weight, bias_O, lora_A, lora_B = (t.detach().clone() for t in tensors)
        leaves = [x, bias_O, lora_A, lora_B]
        for position, leaf in enumerate(leaves):
            leaf.requires_grad_(bool(wanted >> position & 1))
        lora_linear(x, weight, bias_O, lora_A, lora_B, 0.8, form).backward(upstream)
        assert weight.grad is None
        for leaf, want in zip(leaves, truth, strict=True):
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, want, rtol=1e-12, atol=1e-12)
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_that_requires_grad_gets_it(form):
    x, weight, bias_O, lora_A, lora_B = make()
    weight.requires_grad_()
    y = lora_linear(x, weight, bias_O, lora_A, lora_B, 0.8, form)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    want = upstream.reshape(-1, 20).T @ x.detach().reshape(-1, 12)
    torch.testing.assert_close(weight.grad, want, rtol=1e-12, atol=1e-12)


def test_a_frozen_weight_costs_no_gradient_product():
    from torch.utils.flop_counter import FlopCounterMode

    x, weight, bias_O, lora_A, lora_B = make((64,), 48, 96, 2, torch.float32)
    y = lora_linear(x, weight, bias_O, lora_A, lora_B, 0.8)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() < 1.2 * 2 * 64 * 48 * 96


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_masters_get_float32_gradients(form, dtype):
    tensors = make((40,), 24, 30, 4, dtype, param_dtype=torch.float32)
    upstream = torch.randn(40, 30)
    ours = gradients(lora_linear, tensors, form, upstream)
    eager = gradients(reference.lora_linear, tensors, form, upstream)
    truth = gradients(reference.lora_linear, tensors, form, upstream.to(dtype), torch.float64)
    for position, (got, plain, want) in enumerate(zip(ours, eager, truth, strict=True)):
        assert got.dtype == (dtype if position < 2 else torch.float32)
        error = (got.double() - want).norm() / want.norm()
        eager_error = (plain.double() - want).norm() / want.norm()
        assert error <= 2 * eager_error + torch.finfo(dtype).eps


@pytest.mark.parametrize("form", FORMS)
def test_autocast(form):
    x, weight, bias_O, lora_A, lora_B = make((40,), 24, 30, 4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lora_linear(x, weight, bias_O, lora_A, lora_B, 0.8, form)
        y.float().pow(2).sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == lora_A.grad.dtype == lora_B.grad.dtype == bias_O.grad.dtype == torch.float32
    truth = reference.lora_linear(*(t.double() for t in (x, weight, bias_O, lora_A, lora_B)), 0.8)
    assert (y.double() - truth).abs().max() < 0.02 * truth.abs().max()


def test_the_merged_weight_is_summed_before_it_is_rounded():
    weight = torch.full((1, 1), 256.0)
    lora_A, lora_B = torch.ones(1, 1), torch.full((1, 1), 0.75)
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    # 256.75 is nearer to 256 than to 258 in bfloat16, 257.2 to 258; the unmerged update itself is exact
    assert lora_linear(x, weight, None, lora_A, lora_B, 1.6).item() == 258
    assert lora_linear(x, weight, None, lora_A, lora_B, 1.0).item() == 256


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(form, bias):
    x, weight, bias_O, lora_A, lora_B = make((2, 3), 5, 6, 2, torch.float32, bias=bias)
    lora_linear(x, weight, bias_O, lora_A, lora_B, 0.8, form)  # the op is registered by its first call
    torch.library.opcheck(
        torch.ops.slca_fast.lora_linear.default,
        (x, weight, bias_O, lora_A, lora_B, 0.8, form == "merged", "reference"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_graph_breaks(form, autocast):
    def step(x, weight, bias_O, lora_A, lora_B):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return lora_linear(x, weight, bias_O, lora_A, lora_B, 0.8, form).float()

    tensors = make((8,), 12, 16, 2, torch.float32)
    upstream = torch.randn(8, 16)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    wanted = [t for t in tensors if t.requires_grad]
    got = torch.autograd.grad(compiled(*tensors), wanted, upstream)
    want = torch.autograd.grad(step(*tensors), wanted, upstream)
    for ours, eager in zip(got, want, strict=True):
        tolerance = 2e-2 if autocast else 1e-5
        torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 11)}, r"\[\.\.\., 12\].*\(3, 11\)"),
        ({"weight": torch.zeros(20, 12, 1)}, r"\(20, 12, 1\)"),
        ({"bias": torch.zeros(19)}, r"\(19,\)"),
        ({"lora_A": torch.zeros(4, 13)}, r"\(4, 13\)"),
        ({"lora_B": torch.zeros(4, 20)}, r"\(4, 20\)"),
        ({"x": torch.zeros(3, 12, dtype=torch.int64)}, "int64"),
        ({"weight": torch.zeros(20, 12, device="meta")}, "meta"),
        ({"form": "fused"}, "fused"),
        ({"backend": "cuda"}, "cuda"),
        ({"x": torch.zeros(3, 12, dtype=torch.float64), "backend": "native"}, "float64"),
    ],
)
def test_bad_input_is_named(change, message):
    names = ("x", "weight", "bias", "lora_A", "lora_B")
    arguments = dict(zip(names, make(dtype=torch.float32), strict=True)) | change
    form, backend = arguments.pop("form", "merged"), arguments.pop("backend", "auto")
    with pytest.raises(ValueError, match=message):
        lora_linear(*(arguments[name] for name in names), 0.8, form, backend)
