"""Several processes on one run: who takes which images, and how their work adds up to one rank's.

Every rank executes the whole program. The images of a training batch and the chunks of a pass over a data set are
divided; gradients are summed, features gathered in chunk order. Only rank 0 writes files and prints progress.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout

from slca_fast.errors import RankLost, UserError
from slca_fast.machine.rendezvous import own_store


class Ranks:
    """This process among ``size`` ones; ``Ranks()`` is the only one, whose methods cost nothing."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.seconds = 0.0
        """Time spent waiting for other ranks and exchanging with them."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def device(self, device: torch.device) -> torch.device:
        """This rank's own CUDA device where ``device`` is CUDA without a number."""
        if self.alone or device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", self.local_rank)

    def slice_of(self, id_B: np.ndarray) -> np.ndarray:
        """This rank's part of a global batch: consecutive rows, as even as can be; may be empty."""
        return id_B[len(id_B) * self.rank // self.size : len(id_B) * (self.rank + 1) // self.size]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds on some rank."""
        if self.alone:
            return flag
        value = torch.tensor([float(flag)])
        with self._exchange():
            dist.all_reduce(value)
        return bool(value.item() > 0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], extras: Tensor) -> Tensor:
        """Replaces every gradient by its sum over the ranks; returns the sums of ``extras`` ``[K]`` (float32).

        One flat all-reduce: parameters without a gradient must be the same on every rank.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.reshape(-1).float() for g in gradients), extras.float()])
        with self._exchange():
            dist.all_reduce(flat)
        parts = flat.split([*(g.numel() for g in gradients), len(extras)])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients)])
        # A copy, lest the caller keep the whole buffer alive.
        return parts[-1].clone()

    def gather_chunks(self, chunks: Sequence[Tensor | None], num_chunks: int) -> list[Tensor]:
        """All ranks' chunks in the order of their numbers; this rank holds the numbers rank, rank + size, ...

        A chunk is ``[n, ...]`` with any n; None stands for an empty one. The values arrive bit for bit.
        """
        if self.alone:
            return [chunk for chunk in chunks if chunk is not None]
        sizes = torch.zeros(num_chunks, dtype=torch.int64)
        sizes[self.rank :: self.size] = torch.tensor([0 if c is None else len(c) for c in chunks], dtype=torch.int64)
        with self._exchange():
            dist.all_reduce(sizes)
        if not sizes.any():
            return []
        filled = [chunk for chunk in chunks if chunk is not None]
        shape, dtype, device = self._common_form(filled[0] if filled else None)
        longest = max(int(sizes[r :: self.size].sum()) for r in range(self.size))
        mine = torch.zeros(longest, *shape, dtype=dtype, device=device)
        if filled:
            torch.cat(filled, out=mine[: sum(len(chunk) for chunk in filled)])
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(everyone, mine)
        cut = [
            iter(everyone[r][: sizes[r :: self.size].sum()].split(sizes[r :: self.size].tolist()))
            for r in range(self.size)
        ]
        return [next(cut[number % self.size]) for number in range(num_chunks)]

    def _common_form(self, example: Tensor | None) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
        # A rank without any chunk learns the others' shape; all hold theirs on the same kind of device.
        known = self.gather_json(
            None if example is None else [list(example.shape[1:]), str(example.dtype)[6:], example.device.type]
        )
        shape, dtype, kind = next(form for form in known if form is not None)
        return tuple(shape), getattr(torch, dtype), self.device(torch.device(kind))

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's ``value``, by rank."""
        if self.alone:
            return [value]
        data = json.dumps(value).encode()
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        with self._exchange():
            dist.all_reduce(sizes)
        mine = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(everyone, mine)
        return [json.loads(bytes(part[:size].tolist())) for part, size in zip(everyone, sizes.tolist())]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns on rank 0, as JSON; the others do not call it."""
        return self.gather_json(make() if self.is_first else None)[0] if not self.alone else make()

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites ``tensors`` by rank 0's."""
        if self.alone:
            return
        with self._exchange():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def require_same(self, what: str, digest: str) -> None:
        """Raises UserError naming the rank whose ``digest`` of ``what`` differs from rank 0's."""
        found = self.gather_json(digest)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise UserError(f"rank {rank} has other {what} than rank 0: give every node the same files")

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Rank 0 runs the block, then the others do (and find what it left on disk)."""
        if not self.is_first:
            self.any(False)
        yield
        if self.is_first:
            self.any(False)

    def leave(self) -> None:
        """Ends the exchange; nothing can be shared afterwards."""
        if not self.alone:
            dist.destroy_process_group()

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            raise RankLost("another rank has ended; its own line says why") from error
        finally:
            self.seconds += time.perf_counter() - start


ALONE = Ranks()
"""No other process takes part."""


class Votes:
    """Whether any rank wished to stop, read one step late so that a GPU is never waited for."""

    def __init__(self) -> None:
        self._cast: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def cast(self, wishes: Tensor) -> None:
        """``wishes``: the number of ranks that want to stop, known on every rank."""
        if wishes.device.type != "cuda":
            self._cast.append((wishes, None))
            return
        copy = torch.empty(wishes.shape, dtype=wishes.dtype, pin_memory=True).copy_(wishes, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._cast.append((copy, event))

    def passed(self, *, last: bool = False) -> bool:
        """The outcome of the votes but the newest (``last``: of all): the same on every rank."""
        passed = False
        while len(self._cast) > (0 if last else 1):
            wishes, event = self._cast.popleft()
            if event is not None:
                event.synchronize()
            passed |= bool(wishes > 0)
        return passed


def join_ranks(cuda: bool) -> Ranks:
    """The ranks that torchrun started, by its environment; a single rank without it. Gloo on CPUs, NCCL on GPUs."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return Ranks()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size == 1:
        return Ranks()
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if cuda:
        if local_size > torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node is {local_size} but this machine has {torch.cuda.device_count()} CUDA "
                "devices; start one rank per device, or add --runtime.device cpu"
            )
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        store = own_store(rank, size, default_pg_timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except RankLost:
        raise
    except RuntimeError as error:
        raise RankLost(f"the ranks cannot reach each other: {str(error).splitlines()[0]}") from error
    return Ranks(rank, size, local_rank, local_size)


def restarted() -> bool:
    """Whether torchrun started this process anew after a failure (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
