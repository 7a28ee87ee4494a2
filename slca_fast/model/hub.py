"""Downloading weights without a connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

_SECONDS = 10


@contextmanager
def at_once_when_offline() -> Iterator[None]:
    """Within, a hub that does not answer is asked no more: its local cache serves, or the load fails at once.

    Its client alone would try each file six times, 50 s in all.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:
        # Of the client's errors, which differ between its versions, none leaves a hub to load from.
        return False
    return True
