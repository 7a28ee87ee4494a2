"""oneDNN's float32 products: exact where they are used, and only while a run lasts."""

from __future__ import annotations

import torch

from slca_fast.model import products


def precision() -> str:
    return torch.get_float32_matmul_precision()


def test_products_stay_float32_products_and_the_setting_is_put_back() -> None:
    before, generator = precision(), torch.Generator().manual_seed(1)
    a, b = torch.randn(300, 200, generator=generator), torch.randn(200, 100, generator=generator)
    with products.fast_float32_products(torch.device("cpu")):
        assert (precision() == "medium") == (products.why_not() is None)
        ours, again = a @ b, a @ b
    assert precision() == before
    assert torch.equal(ours, again)
    truth = a.double() @ b.double()
    assert (ours.double() - truth).abs().max() < products.FLOAT32_ERROR * truth.abs().max()


def test_a_processor_that_would_round_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(products, "_error", lambda *shape: 4e-3)
    products.why_not.cache_clear()
    try:
        assert "round the factors to bf16" in products.why_not()
        before = precision()
        with products.fast_float32_products(torch.device("cpu")):
            assert precision() == before
        assert products.float32_products_backend(torch.device("cpu"))[0] == "torch's default"
    finally:
        monkeypatch.undo()
        products.why_not.cache_clear()


def test_cuda_is_left_alone() -> None:
    before = precision()
    with products.fast_float32_products(torch.device("cuda")):
        assert precision() == before
