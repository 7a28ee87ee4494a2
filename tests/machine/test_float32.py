"""oneDNN's float32 products: exact where they are used, and only while a run lasts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from slca_fast.machine import float32


def precision() -> str:
    return torch.get_float32_matmul_precision()


def test_products_stay_float32_products_and_the_setting_is_put_back() -> None:
    before, generator = precision(), torch.Generator().manual_seed(1)
    a, b = torch.randn(300, 200, generator=generator), torch.randn(200, 100, generator=generator)
    with float32.fast_float32_products(torch.device("cpu")):
        assert (precision() == "medium") == (float32.why_not() is None)
        ours, again = a @ b, a @ b
    assert precision() == before
    assert torch.equal(ours, again)
    truth = a.double() @ b.double()
    assert (ours.double() - truth).abs().max() < float32.FLOAT32_ERROR * truth.abs().max()


def test_a_processor_that_would_round_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(float32, "_error", lambda *shape: 4e-3)
    float32.why_not.cache_clear()
    try:
        assert "round the factors to bf16" in float32.why_not()
        before = precision()
        with float32.fast_float32_products(torch.device("cpu")):
            assert precision() == before
        assert float32.float32_products_backend(torch.device("cpu"))[0] == "torch's default"
    finally:
        monkeypatch.undo()
        float32.why_not.cache_clear()


def test_cuda_has_no_tf32_while_a_run_lasts() -> None:
    before = precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with float32.fast_float32_products(torch.device("cuda")):
            assert precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.slow
def test_a_process_that_sets_its_precision_by_backend_keeps_it() -> None:
    # In a process of its own: torch has no way back from there.
    code = (
        "import torch\nfrom slca_fast.machine import float32\n"
        "torch.backends.fp32_precision = 'tf32'\n"
        "for kind in ('cuda', 'cpu'):\n"
        "    with float32.fast_float32_products(torch.device(kind)):\n"
        "        assert torch.backends.fp32_precision == 'tf32'\n"
        "print(float32.float32_products_backend(torch.device('cuda'))[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
