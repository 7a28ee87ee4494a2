"""The LoRA linear layer: a frozen weight with a low-rank update, and a backward without the frozen gradient.

With W' = W + s B A, u = x A^T and the upstream gradient g = dL/dy:
  dx = g W',  [dB / s, db] = g^T [u, 1],  dA = s (g B)^T x.
The full g^T x of W costs as much as the forward product: leaving it out saves a third of the arithmetic. g B and
g^T [u, 1] are far too thin for a matrix library; the native and Triton backends make both in one pass over g.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import native, triton_runtime
from ..kernels.lora_linear import native_kernel, reference
from ..kernels.lora_linear.error_bound import lora_linear_error_bound
from .registry import OpSpec, Sample, choose_backend, late_op, register

FORMS = ("merged", "unmerged")


def lora_linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    lora_A_RI: Tensor,
    lora_B_OR: Tensor,
    scale: float,
    form: str = "merged",
    backend: str = "auto",
) -> Tensor:
    """x (W + scale B A)^T + bias for x [..., I] -> [..., O] (LoRA as in SLCA++ section 4.1).

    ``weight_OI`` is frozen: it gets no gradient unless it requires one, and then plain autograd runs.
    Computes in the dtype of ``x``, or in autocast's; parameters may be wider (float32 masters) and get
    gradients in their own dtype. ``form="merged"`` adds W + scale B A in float32 and rounds once;
    ``"unmerged"`` applies the update as two thin products, so it survives where it is below one unit in
    the last place of a bfloat16 W.
    Raises ValueError for shapes that do not fit, mixed devices, non-floating dtypes and unknown forms.
    """
    _check(x, weight_OI, bias_O, lora_A_RI, lora_B_OR, form)
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device_type))
    chosen = choose_backend("lora_linear", backend, x.device, **_unusable(x))
    with torch.autocast(device_type, enabled=False):
        if weight_OI.requires_grad:
            return reference.lora_linear(x, weight_OI, bias_O, lora_A_RI, lora_B_OR, scale, form)
        with torch.no_grad():
            if form == "merged":
                used_OI = reference.merged_weight(weight_OI, lora_A_RI, lora_B_OR, scale, x.dtype)
            else:
                used_OI = weight_OI.to(x.dtype)
        return _OP(x, used_OI, bias_O, lora_A_RI, lora_B_OR, float(scale), form == "merged", chosen)


def _frozen_lora_linear(
    x: Tensor,
    used_OI: Tensor,
    bias_O: Tensor | None,
    lora_A_RI: Tensor,
    lora_B_OR: Tensor,
    scale: float,
    is_merged: bool,
    backend: str,
) -> Tensor:
    """``used_OI`` is W' when merged and W otherwise, in the dtype of ``x``; it is a constant to autograd.

    ``backend`` makes the thin products of the backward; the wide ones are torch's."""
    y = F.linear(x, used_OI, None if bias_O is None else bias_O.to(x.dtype))
    if is_merged:
        return y
    return y + scale * F.linear(F.linear(x, lora_A_RI.to(x.dtype)), lora_B_OR.to(x.dtype))


def _setup_context(ctx, inputs, output) -> None:
    x, used_OI, bias_O, lora_A_RI, lora_B_OR, ctx.scale, ctx.is_merged, ctx.backend = inputs
    ctx.bias_dtype = None if bias_O is None else bias_O.dtype
    ctx.save_for_backward(x, used_OI, lora_A_RI, lora_B_OR)


def _backward(ctx, grad):
    x, used_OI, lora_A_RI, lora_B_OR = ctx.saved_tensors
    needs_x, _, needs_bias, needs_A, needs_B, _, _, _ = ctx.needs_input_grad
    with torch.autocast(x.device.type, enabled=False):
        return _gradients(ctx, x, used_OI, lora_A_RI, lora_B_OR, grad, needs_x, needs_bias, needs_A, needs_B)


def _gradients(ctx, x, used_OI, lora_A_RI, lora_B_OR, grad, needs_x, needs_bias, needs_A, needs_B):
    rank = lora_A_RI.shape[0]
    A_RI, B_OR = lora_A_RI.to(x.dtype), lora_B_OR.to(x.dtype)
    x_NI = x.reshape(-1, x.shape[-1])
    grad_NO = grad.reshape(-1, grad.shape[-1])
    grad_x = grad_bias = grad_A = grad_B = through_NR = both_OS = None
    if needs_B:
        through_NR, both_OS = _thin_products(grad_NO, x_NI @ A_RI.T, B_OR, ctx.backend)
        through_NR = through_NR.to(x.dtype)
        grad_B = (ctx.scale * both_OS[:, :rank]).to(lora_B_OR.dtype)
    elif needs_A or (needs_x and not ctx.is_merged):
        through_NR = grad_NO @ B_OR
    if needs_x:
        grad_x = grad_NO @ used_OI
        if not ctx.is_merged:
            assert through_NR is not None
            grad_x = torch.addmm(grad_x, through_NR, A_RI, alpha=ctx.scale)
        grad_x = grad_x.reshape(x.shape)
    if needs_A:
        assert through_NR is not None
        grad_A = (ctx.scale * (through_NR.T @ x_NI)).to(lora_A_RI.dtype)
    if needs_bias:
        grad_bias = grad_NO.sum(0) if both_OS is None else both_OS[:, rank]
        grad_bias = grad_bias.to(ctx.bias_dtype).contiguous()
    return grad_x, None, grad_bias, grad_A, grad_B, None, None, None


@torch.library.custom_op("slca_fast::lora_thin_products", mutates_args=())
def _thin_products(grad_NO: Tensor, u_NR: Tensor, lora_B_OR: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """(g B, g^T [u, 1]), float32 or wider."""
    if backend == "native":
        return native_kernel.thin_products(grad_NO, u_NR, lora_B_OR)
    if backend == "triton":
        from ..kernels.lora_linear import triton_kernel

        return triton_kernel.thin_products(grad_NO, u_NR, lora_B_OR)
    with torch.autocast(grad_NO.device.type, enabled=False):
        return reference.thin_products(grad_NO, u_NR, lora_B_OR)


@_thin_products.register_fake
def _(grad_NO, u_NR, lora_B_OR, backend):
    dtype = torch.promote_types(grad_NO.dtype, torch.float32)
    num_rows, num_out = grad_NO.shape
    rank = u_NR.shape[1]
    return grad_NO.new_empty(num_rows, rank, dtype=dtype), grad_NO.new_empty(num_out, rank + 1, dtype=dtype)


def _define(name: str) -> None:
    op = torch.library.triton_op(name, _frozen_lora_linear, mutates_args=())
    op.register_autograd(_backward, setup_context=_setup_context)


_OP = late_op("lora_linear", _define)


def _unusable(x: Tensor) -> dict[str, str | None]:
    reasons = {"native": native.why_not(native_kernel.SYMBOL), "triton": triton_runtime.why_not(x.device.type)}
    if x.dtype not in native_kernel.DTYPES:
        reasons["native"] = f"it takes float32 or bfloat16, not {x.dtype}"
    if x.dtype == torch.float64:
        reasons["triton"] = "it takes no float64"
    return reasons


def _check(x, weight_OI, bias_O, lora_A_RI, lora_B_OR, form) -> None:
    if form not in FORMS:
        raise ValueError(f"lora_linear: form must be one of {', '.join(FORMS)}, got {form!r}")
    if weight_OI.dim() != 2:
        raise ValueError(f"lora_linear: weight must be [out, in], got shape {tuple(weight_OI.shape)}")
    num_out, num_in = weight_OI.shape
    if x.dim() < 1 or x.shape[-1] != num_in:
        raise ValueError(f"lora_linear: x must be [..., {num_in}] to fit the weight, got {tuple(x.shape)}")
    if bias_O is not None and bias_O.shape != (num_out,):
        raise ValueError(f"lora_linear: bias must be [{num_out}], got shape {tuple(bias_O.shape)}")
    if lora_A_RI.dim() != 2 or lora_A_RI.shape[1] != num_in:
        raise ValueError(f"lora_linear: lora_A must be [rank, {num_in}], got shape {tuple(lora_A_RI.shape)}")
    if lora_B_OR.shape != (num_out, lora_A_RI.shape[0]):
        raise ValueError(f"lora_linear: lora_B must be [{num_out}, {lora_A_RI.shape[0]}], got {tuple(lora_B_OR.shape)}")
    named = {"x": x, "weight": weight_OI, "bias": bias_O, "lora_A": lora_A_RI, "lora_B": lora_B_OR}
    for name, tensor in named.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"lora_linear: {name} must be floating point, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"lora_linear: {name} is on {tensor.device} but x on {x.device}; move it there")


def _inputs(lead, num_in, num_out, rank, device, dtype, *, has_bias=True, form="merged") -> Sample:
    generator = torch.Generator().manual_seed(num_in * 31 + num_out * 7 + rank)

    def normal(*shape: int, std: float = 1.0, requires_grad: bool = True) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * std
        return values.to(device, dtype).requires_grad_(requires_grad)

    bias = normal(num_out) if has_bias else None
    weight = normal(num_out, num_in, std=num_in**-0.5, requires_grad=False)
    factors = normal(rank, num_in, std=num_in**-0.5), normal(num_out, rank)
    label = f"{'x'.join(map(str, lead))}:{num_in}->{num_out} r{rank} {form}{'' if has_bias else ' no bias'}"
    return Sample(label, (normal(*lead, num_in), weight, bias, *factors, 0.8), {"form": form})


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for form in FORMS:
        yield _inputs((3, 5), 24, 40, 4, device, dtype, form=form)
        yield _inputs((7,), 9, 5, 1, device, dtype, form=form, has_bias=False)
        yield _inputs((1,), 16, 16, 3, device, dtype, form=form)
        yield _inputs((0, 4), 8, 12, 2, device, dtype, form=form)
        yield _inputs((), 8, 12, 2, device, dtype, form=form)


def _benchmark_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    batch, tokens, width = (128, 197, 768) if device.type == "cuda" else (128, 65, 192)
    for form in FORMS:
        yield _inputs((batch, tokens), width, 3 * width, 4, device, dtype, form=form)


def _flops(sample: Sample) -> int:
    """x W'^T and g W', and the four thin products: u = x A^T, g B, g^T u, (g B)^T x."""
    x, weight, _, lora_A = sample.args[:4]
    num_out, num_in = weight.shape
    return 4 * (x.numel() // num_in) * (weight.numel() + len(lora_A) * (num_in + num_out))


def _bytes_moved(sample: Sample) -> int:
    """x, W and y of the forward; x, g, W and dx of the backward, for x is gone from the caches by then."""
    x, weight = sample.args[:2]
    num_bytes_of_y = x.numel() // x.shape[-1] * len(weight) * x.element_size()
    return 3 * x.nbytes + 2 * weight.nbytes + 2 * num_bytes_of_y


register(
    OpSpec(
        name="lora_linear",
        function=lora_linear,
        reference=reference.lora_linear,
        backends={"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
        samples=_samples,
        benchmark_samples=_benchmark_samples,
        error_bound=lora_linear_error_bound,
        bytes_moved=_bytes_moved,
        flops=_flops,
    )
)
