"""The passes of a transformer block between its matrix products, on the CPU (kernels/csrc/vit_passes.cpp).

Matrices are ``[rows, width]``, contiguous. What goes into or comes out of a matrix product is float32 or bfloat16, of
one type per call; the residual stream, parameters and sums over rows are float32. Elsewhere timm's modules do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native

DTYPES = (torch.float32, torch.bfloat16)
_residual_norm = native.function("slca_residual_norm", "ipppppfqqppppi")
_residual_norm_backward = native.function("slca_residual_norm_backward", "ippppppqqpppi")
_gelu = native.function("slca_gelu", "ippqqppi")
_gelu_backward = native.function("slca_gelu_backward", "ippqqppi")
_softmax = native.function("slca_softmax", "ipfqqi")
_softmax_backward = native.function("slca_softmax_backward", "ippfqqi")
_split_heads = native.function("slca_split_heads", "ippqqqqqpi")
_merge_heads = native.function("slca_merge_heads", "ipqqqqqppi")


def why_not() -> str | None:
    """Why these kernels cannot run; None if they can."""
    return native.why_not("slca_residual_norm", "slca_merge_heads")


def residual_sum(x_MD: Tensor, y_MD: Tensor, bias_D: Tensor | None) -> Tensor:
    """x + y + bias in float32."""
    out_MD = torch.empty_like(x_MD)
    _residual_norm(
        is_bf16(y_MD), x_MD, y_MD, bias_D, None, None, 0.0, *x_MD.shape, out_MD, None, None, None, _threads()
    )
    return out_MD


def residual_norm(
    x_MD: Tensor, y_MD: Tensor | None, bias_D: Tensor | None, gamma_D: Tensor, beta_D: Tensor, eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(s, h, mean, 1/std) with s = x + y + bias in float32 and h = LayerNorm(s) in ``dtype``."""
    num_rows, width = x_MD.shape
    sum_MD = x_MD if y_MD is None and bias_D is None else torch.empty_like(x_MD)
    hidden_MD = torch.empty(num_rows, width, dtype=dtype)
    mean_M, inv_std_M = _floats(num_rows), _floats(num_rows)
    _residual_norm(
        dtype == torch.bfloat16, x_MD, y_MD, bias_D, gamma_D, beta_D, eps, num_rows, width,
        sum_MD, hidden_MD, mean_M, inv_std_M, _threads(),
    )  # fmt: skip
    return sum_MD, hidden_MD, mean_M, inv_std_M


def residual_norm_backward(
    grad_hidden_MD: Tensor, sum_MD: Tensor, mean_M: Tensor, inv_std_M: Tensor, gamma_D: Tensor, grad_sum_MD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of x, the same in the dtype of ``grad_hidden``, sums over rows ``[3, D]``: of gamma, beta and bias).

    ``grad_sum`` is the gradient that reaches s by other ways; it is overwritten and returned.
    """
    rounded_MD, sums_3D = torch.empty_like(grad_hidden_MD), _floats(3, sum_MD.shape[1])
    _residual_norm_backward(
        is_bf16(grad_hidden_MD), grad_hidden_MD, sum_MD, mean_M, inv_std_M, gamma_D, grad_sum_MD, *sum_MD.shape,
        grad_sum_MD, rounded_MD, sums_3D, _threads(),
    )  # fmt: skip
    return grad_sum_MD, rounded_MD, sums_3D


def round_and_sum(grad_MD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(``grad`` in ``dtype``, its sum over rows in float32)."""
    assert grad_MD.dtype == torch.float32 and grad_MD.is_contiguous()
    rounded_MD, sums_3D = torch.empty(grad_MD.shape, dtype=dtype), _floats(3, grad_MD.shape[1])
    _residual_norm_backward(
        dtype == torch.bfloat16, None, None, None, None, None, grad_MD, *grad_MD.shape, grad_MD, rounded_MD, sums_3D,
        _threads(),
    )  # fmt: skip
    return rounded_MD, sums_3D[2]


def gelu(x_MF: Tensor, bias_F: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """(GELU(x + bias), its slope there), in the dtype of ``x``; the slope is written over ``x``."""
    out_MF = torch.empty_like(x_MF)
    slope_MF = x_MF if with_slope else None
    _gelu(is_bf16(x_MF), x_MF, bias_F, *x_MF.shape, out_MF, slope_MF, _threads())
    return out_MF, slope_MF


def gelu_backward(grad_MF: Tensor, slope_MF: Tensor) -> tuple[Tensor, Tensor]:
    """(grad * slope written over ``grad``, its sum over rows in float32)."""
    bias_F = _floats(grad_MF.shape[1])
    _gelu_backward(is_bf16(grad_MF), grad_MF, slope_MF, *grad_MF.shape, grad_MF, bias_F, _threads())
    return grad_MF, bias_F


def softmax_(scores: Tensor, scale: float) -> Tensor:
    """softmax(scale * scores) over the last dimension, in place."""
    width = scores.shape[-1]
    _softmax(is_bf16(scores), scores, scale, scores.numel() // width, width, _threads())
    return scores


def softmax_backward_(grad: Tensor, probabilities: Tensor, scale: float) -> Tensor:
    """The gradient of the scores, in place of that of the probabilities."""
    width = grad.shape[-1]
    _softmax_backward(is_bf16(grad), grad, probabilities, scale, grad.numel() // width, width, _threads())
    return grad


def split_heads(x_MK: Tensor, bias_K: Tensor | None, num_images: int, parts: int, heads: int) -> Tensor:
    """``[B * N, parts * H * d]`` (+ bias) -> ``[parts, B * H, N, d]``."""
    tokens, dim = x_MK.shape[0] // num_images, x_MK.shape[1] // (parts * heads)
    out = torch.empty(parts, num_images * heads, tokens, dim, dtype=x_MK.dtype)
    _split_heads(is_bf16(x_MK), x_MK, bias_K, num_images, tokens, parts, heads, dim, out, _threads())
    return out


def merge_heads(x: Tensor, num_images: int, with_sum: bool) -> tuple[Tensor, Tensor | None]:
    """``[parts, B * H, N, d]`` -> (``[B * N, parts * H * d]``, its sum over rows in float32)."""
    parts, num_rows, tokens, dim = x.shape
    heads = num_rows // num_images
    out_MK = torch.empty(num_images * tokens, parts * heads * dim, dtype=x.dtype)
    bias_K = _floats(parts * heads * dim) if with_sum else None
    _merge_heads(is_bf16(x), x, num_images, tokens, parts, heads, dim, out_MK, bias_K, _threads())
    return out_MK, bias_K


def is_bf16(tensor: Tensor) -> bool:
    """Whether the kernels take ``tensor`` as bfloat16 rather than float32; it is contiguous, and one of both."""
    assert tensor.dtype in DTYPES and tensor.is_contiguous(), (tensor.dtype, tensor.stride())
    return tensor.dtype == torch.bfloat16


def _floats(*shape: int) -> Tensor:
    # Whatever the process's default dtype and device.
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _threads() -> int:
    return torch.get_num_threads()
