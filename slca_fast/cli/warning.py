"""What a command says besides its answer."""

from __future__ import annotations

import sys


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"slca-fast: {text}", file=sys.stderr, flush=True)
