"""A store of this attempt's own for the ranks to find each other in.

torchrun restarts failed ranks against the very store of the attempt before (pytorch/pytorch#135712), where a rank may
read an address that nobody listens on any more. Its restart count is no key either: every node counts for itself.
So the ranks first agree on a name that no earlier attempt can have used.
"""

from __future__ import annotations

import json
import secrets
import time
from datetime import timedelta

import torch.distributed as dist

from slca_fast.errors import RankLost

POLL_S = 0.02


def own_store(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The part of torchrun's store that only the present processes know; raises RankLost if not all come in time."""
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    name = agree_on_name(dist.PrefixStore("slca_fast/meeting", store), rank, size, timeout)
    return dist.PrefixStore(f"slca_fast/{name}", store)


def agree_on_name(store: dist.Store, rank: int, size: int, timeout: timedelta) -> str:
    """The name that rank 0 made up, the same on all ``size`` ranks that now run, whatever is left in ``store``.

    Rank 0 calls the roll of the names it finds until every rank has answered; a rank answers only a roll with its own
    name on it, which nobody but the present rank 0 can have written. Raises RankLost after ``timeout``.
    """
    mine, deadline = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    store.set(f"here/{rank}", mine)
    missing = list(range(1, size))
    while time.monotonic() < deadline:
        if rank == 0:
            store.set("roll", json.dumps([mine, *(_read(store, f"here/{other}") for other in range(1, size))]))
            missing = [other for other in missing if _read(store, f"answer/{other}") != mine]
            if not missing:
                return mine
        else:
            roll = json.loads(_read(store, "roll") or "[]")
            if len(roll) == size and roll[rank] == mine:
                store.set(f"answer/{rank}", roll[0])
                return roll[0]
        time.sleep(POLL_S)
    awaited = f"rank {', '.join(map(str, missing))}" if rank == 0 else "rank 0"
    raise RankLost(f"{awaited} did not come within {timeout.total_seconds():.0f} s; its own lines say why")


def _read(store: dist.Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None
