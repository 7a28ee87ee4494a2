"""The kinds of trouble that are not bugs; the command line turns each into one line and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UserError(ValueError):
    """An option, a file named by an option, or a combination of them cannot be used (exit code 2)."""


class DataError(ValueError):
    """The data set on disk cannot be used (exit code 3)."""


class RankLost(RuntimeError):
    """Another rank has ended; its own message says why (exit code 1)."""


def did_you_mean(name: str, known: Collection[str], prefix: str = "") -> str:
    """``"; did you mean X?"`` with the nearest of ``known``, or nothing when none is near."""
    close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
