"""The units in which kernels/<op>/error_bound.py count: what one rounding costs, and what underflow takes away.

The rules are those of Higham, "Accuracy and Stability of Numerical Algorithms" (2002), chapters 2 to 4: one operation
errs by at most one unit of its result, a sum of n terms, in any order, by at most n units of the sum of their sizes.
An exp, log, sqrt or division is granted 4 units: what the approximate ones of a GPU take.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding to ``dtype``."""
    return torch.finfo(dtype).eps / 2


# What the float64 truth loses of a probability's distance from 1: autograd takes it as p - 1, or finds it clamped.
TRUTH_BESIDE_1 = 4 * unit(torch.float64)


def underflow(dtype: torch.dtype) -> float:
    """The largest number that may become 0: float16 goes on below its normal numbers, the others are flushed."""
    limits = torch.finfo(dtype)
    return limits.tiny * (limits.eps if dtype == torch.float16 else 4)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which ops on ``dtype`` sum."""
    return torch.promote_types(dtype, torch.float32)


def softmax_error(score_BC: Tensor, score_error_BC: Tensor | float, one: float) -> tuple[Tensor, Tensor]:
    """log softmax(score) and the relative error of the probabilities (the absolute one of their logarithm), [B, C].

    A probability is e_k over a sum of C such terms, or exp of a difference of logarithms; ``score_error_BC`` is the
    absolute error of the scores' differences. The sum has the mean error of its terms.
    """
    log_p_BC = score_BC.log_softmax(dim=1)
    # Subtracting and multiplying by log2 e rounds: a few units of the exponent, which is at most |log p|.
    exponent_BC = score_error_BC + 8 * one * log_p_BC.abs()
    # -inf * 0 where a class has no probability at all
    mean_B1 = (log_p_BC.exp() * exponent_BC).nan_to_num().sum(dim=1, keepdim=True)
    return log_p_BC, exponent_BC + mean_B1 + (score_BC.shape[1] + 16) * one
