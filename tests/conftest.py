"""What every test shares: one thread (processes on shared cores would spin), no network, GPU tests only with a GPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    # Inductor's cache does not tell these apart: code of one does not build for the other.
    cache = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}_{capability}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)

import pytest
import torch

from slca_fast.kernels import native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=native.ISA_NAMES)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine in turn, used by the native library."""
    before = native.isa()
    if native.set_isa(request.param) != request.param:
        native.set_isa(before)
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    native.set_isa(before)
