"""The training loss as a module, for code that wants an object rather than a function."""

from __future__ import annotations

from torch import Tensor, nn

from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy


class SymmetricCrossEntropy(nn.Module):
    """``ce_weight * CE + rce_weight * RCE`` (SLCA++, arXiv 2408.08295; symmetric cross-entropy of Wang et al. 2019).

    Takes logits ``[B, C]`` (floating point) and targets ``[B]`` (integer); returns a scalar, or ``[B]`` for
    ``reduction="none"``. Raises ValueError for mismatched shapes or dtypes.
    """

    def __init__(
        self, ce_weight: float = 1.0, rce_weight: float = 1.0, reduction: str = "mean", backend: str = "auto"
    ) -> None:
        super().__init__()
        self.ce_weight, self.rce_weight, self.reduction, self.backend = ce_weight, rce_weight, reduction, backend

    def forward(self, logits_BC: Tensor, target_B: Tensor) -> Tensor:
        return symmetric_cross_entropy(
            logits_BC, target_B, self.ce_weight, self.rce_weight, self.reduction, self.backend
        )

    def extra_repr(self) -> str:
        return f"ce_weight={self.ce_weight}, rce_weight={self.rce_weight}, reduction={self.reduction!r}"
