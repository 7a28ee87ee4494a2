"""``slca-fast presets``: the named configurations, a line each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from slca_fast.errors import UserError, did_you_mean
from slca_fast.methods.presets import PRESETS, describe


def main(argv: Sequence[str]) -> int:
    """Prints every preset (or those whose name contains a word) with what it trains."""
    parser = argparse.ArgumentParser(prog="slca-fast presets", description="List the named configurations.")
    parser.add_argument("contains", nargs="?", default="", help="only names that contain this")
    options = parser.parse_args(argv)
    names = [name for name in sorted(PRESETS) if options.contains in name]
    if not names:
        hint = did_you_mean(options.contains, list(PRESETS))
        raise UserError(f"no preset's name contains {options.contains!r}{hint}")
    for name in names:
        print(f"{name:28s} {describe(name)}")
    return 0
