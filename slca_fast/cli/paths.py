"""Paths as a user types them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str) -> Path:
    """``text`` as a path, ``~`` expanded: a shell leaves it in ``--to=~/x``, in quotes and in files."""
    return Path(os.path.expanduser(text))
