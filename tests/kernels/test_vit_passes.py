"""The passes of a transformer block against float64, on every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slca_fast.kernels.vit_block import passes

pytestmark = pytest.mark.skipif(passes.why_not() is not None, reason=str(passes.why_not()))


def test_no_pass_depends_on_the_number_of_threads() -> None:
    x, y = torch.randn(203, 40), torch.randn(203, 40).bfloat16()
    gamma, beta = torch.randn(40), torch.randn(40)

    def everything(num_threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        try:
            s, h, mean, inv_std = passes.residual_norm(x, y, beta, gamma, beta, 1e-6, torch.bfloat16)
            grads = passes.residual_norm_backward(h, s, mean, inv_std, gamma, x.clone())
            value, slope = passes.gelu(y.clone(), beta, with_slope=True)
            heads = passes.split_heads(y[:200].repeat(1, 3), None, 8, 3, 5)
            return [s, h, *grads, value, *passes.gelu_backward(h.clone(), slope), *passes.merge_heads(heads, 8, True)]
        finally:
            torch.set_num_threads(before)

    for one, three in zip(everything(1), everything(3)):
        assert torch.equal(one, three)


# In bfloat16 the storage rounds by 2^-9; float32 arithmetic may lose a few last bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", passes.DTYPES, ids=str)
def test_gelu_and_its_slope_everywhere(isa, dtype) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4801), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 90.0, -90.0, 3e4])]).to(dtype)
    value, slope = passes.gelu(x.clone()[None], torch.zeros(len(x)), with_slope=True)
    z = x.double()
    below = torch.tensor([0.5 * math.erfc(-v / math.sqrt(2)) for v in z.tolist()], dtype=torch.float64)
    bell = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(value[0].double(), z * below, rtol=TOLERANCE[dtype], atol=1e-12)
    # Where the slope crosses 0 (near -0.75) only its absolute error means something.
    torch.testing.assert_close(slope[0].double(), below + z * bell, rtol=TOLERANCE[dtype], atol=1e-6)
    assert passes.gelu(torch.tensor([[float("nan")]]).to(dtype), torch.zeros(1), False)[0].isnan().all()


@pytest.mark.parametrize("dtype", passes.DTYPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 40), width=st.integers(1, 70), size=st.sampled_from([0.01, 1.0, 100.0]), long=st.booleans())
def test_softmax_and_its_gradient(dtype, rows, width, size, long) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + width)
    width += 1500 * long
    scores = (torch.randn(rows, width, generator=generator) * size).to(dtype)
    truth = (0.125 * scores.double()).softmax(-1)
    ours = passes.softmax_(scores.clone(), 0.125)
    torch.testing.assert_close(ours.double(), truth, rtol=5 * TOLERANCE[dtype], atol=1e-7)
    upstream = torch.randn(rows, width, generator=generator).to(dtype)
    p, g = ours.double(), upstream.double()
    expected = 0.125 * p * (g - (g * p).sum(-1, keepdim=True))
    found = passes.softmax_backward_(upstream.clone(), ours, 0.125)
    torch.testing.assert_close(found.double(), expected, rtol=5 * TOLERANCE[dtype], atol=2e-7)


def test_softmax_brings_nan_through() -> None:
    scores = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 1.0, 2.0]])
    ours = passes.softmax_(scores, 1.0)
    assert ours[0].isnan().all() and ours[1].isfinite().all()


@pytest.mark.parametrize("dtype", passes.DTYPES, ids=str)
@pytest.mark.parametrize("rows, width", [(1, 1), (3, 7), (33, 24), (50, 100)])
def test_norm_of_a_sum_and_its_gradients(isa, dtype, rows, width) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator) + 3
    x[0] = 0.5  # a constant row has no spread
    y, upstream = (torch.randn(rows, width, generator=generator).to(dtype) for _ in range(2))
    y[0] = 0
    bias, gamma, beta = torch.zeros(width), *(torch.randn(width, generator=generator) for _ in range(2))
    s, h, mean, inv_std = passes.residual_norm(x, y, bias, gamma, beta, 1e-5, dtype)
    leaf = (x.double() + y.double()).requires_grad_(True)
    g64, b64 = gamma.double().requires_grad_(True), beta.double().requires_grad_(True)
    truth = torch.nn.functional.layer_norm(leaf, (width,), g64, b64, 1e-5)
    torch.testing.assert_close(s.double(), leaf.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(h.double(), truth.detach(), rtol=2 * TOLERANCE[dtype], atol=2e-5)
    truth.backward(upstream.double())
    other = torch.randn(rows, width, generator=generator)
    grad, rounded, sums = passes.residual_norm_backward(upstream, s, mean, inv_std, gamma, other.clone())
    expected = leaf.grad + other.double()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-3 if width == 1 else 3e-5)
    assert torch.equal(rounded, grad.to(dtype))
    for found, wanted in zip(sums, (g64.grad, b64.grad, expected.sum(0))):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-3 if width == 1 else 1e-4)


@pytest.mark.parametrize("dtype", passes.DTYPES, ids=str)
@pytest.mark.parametrize("images, tokens, parts, heads, dim", [(1, 1, 3, 1, 1), (3, 5, 3, 2, 7), (20, 4, 1, 3, 16)])
def test_heads_are_split_and_merged(isa, dtype, images, tokens, parts, heads, dim) -> None:
    x = torch.randn(images * tokens, parts * heads * dim).to(dtype)
    bias = torch.randn(parts * heads * dim)
    split = passes.split_heads(x, bias, images, parts, heads)
    shifted = (x.float() + bias).to(dtype)
    expected = shifted.view(images, tokens, parts, heads, dim).permute(2, 0, 3, 1, 4)
    assert torch.equal(split, expected.reshape(parts, images * heads, tokens, dim))
    merged, sums = passes.merge_heads(split, images, with_sum=True)
    assert torch.equal(merged, shifted)
    torch.testing.assert_close(sums.double(), shifted.double().sum(0), rtol=1e-5, atol=1e-5)
