"""The fused block's layout in memory, told by the library, and its products summed over rows."""

from __future__ import annotations

import ctypes

import pytest
import torch

from slca_fast.kernels import native
from slca_fast.kernels.vit_block import fused, passes

pytestmark = pytest.mark.skipif(passes.why_not() is not None, reason=str(passes.why_not()))

FIELDS = list(fused.FusedBlock._fields_)
Fields = list[tuple[str, type]]


def structure(fields: Fields) -> type[ctypes.Structure]:
    return type("Changed", (ctypes.Structure,), {"_fields_": fields})


def swapped(first: str, second: str) -> Fields:
    names = [name for name, _ in FIELDS]
    changed = list(FIELDS)
    i, j = names.index(first), names.index(second)
    changed[i], changed[j] = changed[j], changed[i]
    return changed


def of_type(name: str, kind: type) -> Fields:
    return [(field, kind if field == name else of) for field, of in FIELDS]


def test_the_library_lays_out_the_block_as_python_does():
    assert fused.layout_mismatch(fused.FusedBlock) is None
    assert fused.layout_mismatch(structure(list(FIELDS))) is None


@pytest.mark.parametrize(
    "fields, named",
    [
        (swapped("tokens", "queries"), "has tokens (8 bytes at 8) where this package has queries (8 bytes at 8)"),
        (swapped("gamma1", "beta1"), "has gamma1"),
        (swapped("hidden", "qkv"), "has hidden"),
        (of_type("eps1", ctypes.c_double), "has eps1 (4 bytes at 184) where this package has eps1 (8 bytes at 184)"),
        (of_type("images", ctypes.c_int32), "has images (8 bytes at 0) where this package has images (4 bytes at 0)"),
        (of_type("eps2", ctypes.c_int64), "has eps2"),
        (FIELDS[:-1], "has activated (8 bytes at 288) where this package has end (0 bytes at 288)"),
        ([*FIELDS, ("more", ctypes.c_void_p)], "has end (0 bytes at 296) where this package has more"),
        ([("fewer", ctypes.c_int64)], "has images"),
    ],
)
def test_another_order_width_or_number_of_fields_is_found(fields, named):
    reason = fused.layout_mismatch(structure(fields))
    assert reason is not None and reason.startswith("the native library does not fit: its block ")
    assert named in reason and reason.endswith("build it again")


def test_a_library_that_does_not_fit_multiplies_nothing_and_says_so(monkeypatch):
    changed = type("Changed", (fused.FusedBlock,), {"_fields_": [("more", ctypes.c_int64)]})
    assert fused.layout_mismatch(changed) is not None
    with pytest.raises(AssertionError, match="does not fit"):
        fused.forward(changed(), torch.float32, *[torch.zeros(1, 1)] * 3, *[torch.zeros(1, 1)] * 2)
    with pytest.raises(AssertionError, match="does not fit"):
        fused.backward(changed(), *[torch.zeros(1, 1)] * 8)
    monkeypatch.setattr(native, "isa", lambda: "avx512bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert fused.why_not(torch.float32) is None
    monkeypatch.setattr(fused, "FusedBlock", structure(swapped("fc1", "fc2")))
    for dtype in passes.DTYPES:
        assert "does not fit" in fused.why_not(dtype) and "build it again" in fused.why_not(dtype)


@pytest.mark.parametrize("dtype", passes.DTYPES, ids=str)
@pytest.mark.parametrize("rows, a, b", [(1, 1, 1), (3, 5, 50), (257, 17, 48), (700, 100, 33)])
def test_products_summed_over_rows(isa, dtype, rows, a, b) -> None:
    generator = torch.Generator().manual_seed(rows)
    left, right = (torch.randn(rows, width, generator=generator).to(dtype) for width in (a, b))
    truth = left.double().T @ right.double()
    found = fused.outer(left, right)
    assert (found - truth).norm() < 1e-6 * truth.norm()
    assert (fused.outer(left, right, found) - 2 * truth).norm() < 1e-6 * 2 * truth.norm()
