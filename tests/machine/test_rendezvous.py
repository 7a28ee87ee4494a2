"""The ranks of a restarted attempt find each other, not what the attempt before left in the store."""

import socket
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from slca_fast.errors import RankLost
from slca_fast.machine import ranks
from slca_fast.machine.rendezvous import agree_on_name

LONG = timedelta(seconds=60)


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(server: dist.TCPStore) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)


def meet(server: dist.TCPStore, size: int, late: dict[int, float] | None = None) -> list[str]:
    """What every rank of one attempt agrees on; rank r comes ``late[r]`` seconds after the others."""
    names: dict[int, str] = {}

    def join(rank: int) -> None:
        names[rank] = agree_on_name(client(server), rank, size, LONG)

    threads = {r: threading.Timer((late or {}).get(r, 0.0), join, [r]) for r in range(size)}
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join()
    return [names[rank] for rank in range(size)]


@pytest.mark.thorough
@pytest.mark.parametrize("late", [{}, {0: 0.3}, {1: 0.3}, {0: 0.3, 2: 0.6}], ids=str)
def test_every_attempt_agrees_on_one_new_name_whoever_comes_first(server, late) -> None:
    seen = set()
    for _ in range(3):
        names = meet(server, 3, late)
        assert len(set(names)) == 1
        seen.add(names[0])
    assert len(seen) == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_an_attempt_that_only_one_rank_joined_leaves_nothing_that_misleads_the_next(server, rank) -> None:
    old = meet(server, 2)[0]
    with pytest.raises(RankLost, match="rank 1" if rank == 0 else "rank 0"):
        agree_on_name(client(server), rank, 2, timedelta(seconds=0.3))
    names = meet(server, 2, {1 - rank: 0.2})
    assert names[0] == names[1] != old


def test_a_store_that_nobody_serves_ends_in_one_line(monkeypatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "default_pg_timeout", timedelta(seconds=1))
    with pytest.raises(RankLost, match="cannot reach each other"):
        ranks.join_ranks(cuda=False)
