"""How far rounding may take the LoRA linear layer from the equation in reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rounding import accumulate_dtype, underflow, unit
from .reference import lora_linear


def lora_linear_error_bound(
    upstream: Sequence[Tensor],
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    lora_A_RI: Tensor,
    lora_B_OR: Tensor,
    scale: float,
    form: str = "merged",
) -> tuple[list[Tensor], list[Tensor]]:
    """Bounds (of y, of the gradients by what requires one), float64; see ``OpSpec.error_bound``.

    Everything is a chain of at most three products: it errs by the lengths of its sums in units of the dtype that sums,
    and by 5 roundings to the dtype of ``x`` on the way. The sizes are those of the same products of absolute values.
    """
    one, last = unit(accumulate_dtype(x.dtype)), unit(x.dtype)

    def size_of(t: Tensor) -> Tensor:
        return t.detach().double().abs().requires_grad_(t.requires_grad)

    bias_size = None if bias_O is None else size_of(bias_O)
    sizes = (size_of(x), size_of(weight_OI), bias_size, size_of(lora_A_RI), size_of(lora_B_OR))
    (num_out, num_in), rank, num_rows = weight_OI.shape, len(lora_A_RI), x[..., 0].numel()
    # Terms of the sums behind the gradient by each of ``sizes``.
    terms = (num_out + rank, num_rows, num_rows, num_rows + num_out, num_rows + num_in)

    def error(size: Tensor, num_terms: int) -> Tensor:
        return (5 * last + (num_terms + 8) * one) * size + underflow(x.dtype)

    y = lora_linear(*sizes, abs(scale), form)
    outputs = [error(y.detach(), num_in + rank)]
    if not upstream:
        return outputs, []
    learnt = [(size, n) for size, n in zip(sizes, terms) if size is not None and size.requires_grad]
    gradients = torch.autograd.grad(y, [size for size, _ in learnt], upstream[0].double().abs())
    return outputs, [error(gradient, n) for gradient, (_, n) in zip(gradients, learnt)]
