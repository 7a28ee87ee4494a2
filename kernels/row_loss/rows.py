"""What every loss over rows of logits reads beside its own parameters, and the memory it writes to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """B rows of logits over C classes, all on one device.

    An implementation of a loss is ``f(rows, *parameters) -> (loss_B, gradient_BC)``, both multiplied by ``scale_B``.
    """

    logits_BC: Tensor
    """[B, C] floating point."""
    target_B: Tensor
    """[B] int64 labels."""
    scale_B: Tensor
    """[B] float32, float64 for float64 logits: the factor of every row's loss and gradient."""
    with_gradient: bool
    """Whether the gradient is computed too; if not, ``gradient_BC`` has no elements."""

    def dense(self) -> Rows:
        """The same with the classes of a row, the labels and the scales side by side in memory."""
        logits_BC = self.logits_BC if self.logits_BC.stride(1) == 1 else self.logits_BC.contiguous()
        return Rows(logits_BC, self.target_B.contiguous(), self.scale_B.contiguous(), self.with_gradient)

    def memory(self) -> tuple[Tensor, Tensor]:
        """``loss_B`` in the dtype of ``scale_B`` and ``gradient_BC`` in that of the logits, contiguous, not filled."""
        shape = self.logits_BC.shape if self.with_gradient else (0,)
        return torch.empty_like(self.scale_B), self.logits_BC.new_empty(shape)
