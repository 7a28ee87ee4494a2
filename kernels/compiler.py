"""What torch.compile should know about plain Python functions, said without importing the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_to_the_compiler(function: F) -> F:
    """Marks ``function`` so that torch.compile calls it once and takes its result for a constant.

    The mark of torch.compiler.assume_constant_result, which would import the compiler (seconds, and environment
    variables set) only to put it there.
    """
    function._dynamo_marked_constant = True
    return function
