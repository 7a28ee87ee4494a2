"""The fused block on the CPU: passes and matrix products, group of images by group (kernels/csrc/vit_fused_block.cpp).

Matrices as in passes.py. A block is computed as timm's plain one, with products of float32 or bfloat16 numbers summed
in float32.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from .. import native
from .passes import is_bf16

_SIZES = ("images", "tokens", "queries", "heads", "dim", "hidden", "group", "num_threads")
_POINTERS = (
    "qkv", "proj", "fc1", "fc2", "qkv_back", "proj_back", "fc1_back", "fc2_back",
    "qkv_bias", "proj_bias", "fc1_bias", "gamma1", "beta1", "gamma2", "beta2",
)  # fmt: skip
_KEPT = (
    "sum1", "mean1", "inv_std1", "hidden1", "qkv_out", "probabilities", "context",
    "sum2", "mean2", "inv_std2", "hidden2", "slope", "activated",
)  # fmt: skip


class FusedBlock(ctypes.Structure):
    """``SlcaFusedBlock`` of kernels/csrc/vit_fused_block.h; ``set`` keeps the tensors alive."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("eps1", ctypes.c_float),
        ("eps2", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in _KEPT),
    ]

    def set(self, **tensors: Tensor) -> None:
        self._tensors = {**getattr(self, "_tensors", {}), **tensors}
        for name, tensor in tensors.items():
            setattr(self, name, tensor.data_ptr())


class _Field(ctypes.Structure):
    """``SlcaField``: where a field lies in the library's struct, in bytes."""

    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_int64), ("size", ctypes.c_int64)]


# Floating-point operations of all products up to now: torch's FlopCounterMode does not see them.
_flops = 0

_layout = native.function("slca_fused_block_layout", "ppp")
_forward = native.function("slca_fused_block_forward", "ipppppp")
_backward = native.function("slca_fused_block_backward", "ippppppppp")
_outer = native.function("slca_outer", "ipqpqqipi")
_pack_weight = native.function("slca_pack_weight", "ipqqip")
_packed_size = native.function("slca_packed_size", "iqqp")


def why_not(dtype: torch.dtype) -> str | None:
    """Why torch's products are taken in its place; None if these are the faster ones (docs/performance.md)."""
    if reason := native.why_not("slca_fused_block_forward", "slca_fused_block_layout", "slca_outer"):
        return reason
    if reason := layout_mismatch(FusedBlock):
        return reason
    isa = native.isa()
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "torch multiplies bfloat16 in AMX tiles"
    fit = ("avx512bf16",) if dtype == torch.bfloat16 else ("avx2", "avx512", "avx512bf16")
    return None if isa in fit else f"the native library's products of {dtype} are slow on {isa}"


@functools.cache
def layout_mismatch(structure: type[ctypes.Structure]) -> str | None:
    """Where ``structure`` and the library's SlcaFusedBlock lay out memory differently; None if they are the same."""
    fields, num_fields, num_bytes = ctypes.POINTER(_Field)(), ctypes.c_int64(), ctypes.c_int64()
    _layout(ctypes.byref(fields), ctypes.byref(num_fields), ctypes.byref(num_bytes))
    theirs = [(field.name.decode(), field.offset, field.size) for field in fields[: num_fields.value]]
    descriptors = {name: getattr(structure, name) for name, *_ in structure._fields_}
    ours = [(name, descriptor.offset, descriptor.size) for name, descriptor in descriptors.items()]
    # The end is a field more, so that a struct that stops early or goes on differs somewhere.
    theirs.append(("end", num_bytes.value, 0))
    ours.append(("end", ctypes.sizeof(structure), 0))
    for (name, offset, size), (our_name, our_offset, our_size) in zip(theirs, ours):
        if (name, offset, size) != (our_name, our_offset, our_size):
            return (
                f"the native library does not fit: its block has {name} ({size} bytes at {offset}) where this package "
                f"has {our_name} ({our_size} bytes at {our_offset}): build it again"
            )
    return None


def _assert_fits(block: ctypes.Structure) -> None:
    reason = layout_mismatch(type(block))
    assert reason is None, reason


def flops() -> int:
    """Floating-point operations of this process's products up to now: two for a multiplication and an addition."""
    return _flops


def _count(block: FusedBlock, products_of_attention: int) -> None:
    global _flops
    width, hidden = block.heads * block.dim, block.hidden
    per_query = width * width + 2 * width * hidden + products_of_attention * block.tokens * width
    _flops += 2 * block.images * (block.tokens * 3 * width * width + block.queries * per_query)


def pack_weight(weight_OI: Tensor, transposed: bool) -> Tensor:
    """``weight`` in the order in which x W^T (or, ``transposed``, g W) reads it."""
    num_out, num_in = weight_OI.shape
    summed, columns = (num_out, num_in) if transposed else (num_in, num_out)
    size = torch.empty(1, dtype=torch.int64)
    _packed_size(is_bf16(weight_OI), summed, columns, size)
    packed = torch.empty(int(size), dtype=torch.int32)
    _pack_weight(is_bf16(weight_OI), weight_OI, num_out, num_in, transposed, packed)
    return packed


def forward(
    block: FusedBlock, dtype: torch.dtype, x_MD: Tensor, y_MD: Tensor | None, bias_D: Tensor | None,
    x_out_QD: Tensor, y_out_QD: Tensor,
) -> None:  # fmt: skip
    """x + y + bias is the block's input; ``x_out`` + ``y_out`` + the bias of fc2 will be its output."""
    _assert_fits(block)
    _forward(dtype == torch.bfloat16, ctypes.byref(block), x_MD, y_MD, bias_D, x_out_QD, y_out_QD)
    _count(block, products_of_attention=2)


def backward(
    block: FusedBlock, grad_QD: Tensor, rounded_QD: Tensor, grad_fc1_QF: Tensor, grad_proj_QD: Tensor,
    grad_qkv_MK: Tensor, grad_x_MD: Tensor, rounded_x_MD: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    """Fills all after ``rounded``, and overwrites ``grad``: vit_fused_block.cpp says with what."""
    _assert_fits(block)
    _backward(
        is_bf16(rounded_QD), ctypes.byref(block), grad_QD, rounded_QD,
        grad_fc1_QF, grad_proj_QD, grad_qkv_MK, grad_x_MD, rounded_x_MD, sums,
    )  # fmt: skip
    _count(block, products_of_attention=4)


def outer(a_MO: Tensor, b_MI: Tensor, out_OI: Tensor | None = None) -> Tensor:
    """a^T b in float32 ``[O, I]``; added to ``out`` if given."""
    global _flops
    add = out_OI is not None
    if out_OI is None:
        out_OI = torch.empty(a_MO.shape[1], b_MI.shape[1], dtype=torch.float32, device="cpu")
    _outer(
        is_bf16(a_MO), a_MO, a_MO.shape[1], b_MI, b_MI.shape[1], len(a_MO), add, out_OI, torch.get_num_threads()
    )  # fmt: skip
    _flops += 2 * len(a_MO) * out_OI.numel()
    return out_OI
