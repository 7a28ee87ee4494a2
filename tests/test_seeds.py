"""No two random streams share a key, and the keys of published results stay what they were."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from slca_fast import seeds

SEEDS = st.integers(0, 2**32 - 1)
TASKS = st.integers(0, seeds.MAX_TASKS - 1)


def as_the_cpu_sees_it(key: int) -> int:
    return key & 0xFFFFFFFF


def test_torchs_cpu_generator_looks_at_32_bits() -> None:
    draws = [torch.rand(4, generator=torch.Generator().manual_seed(5 + more)) for more in (0, 1 << 32)]
    assert torch.equal(*draws)


@given(SEEDS, TASKS, TASKS, st.integers(0, 999), st.integers(0, 10**6), st.integers(0, 63))
def test_streams_of_one_run_differ_on_every_device(seed, task, other, epoch, step, rank) -> None:
    keys = {
        "head": seeds.head_key(seed, task),
        "alignment": seeds.alignment_key(seed, other),
        "weights": seeds.weights_key(seed),
        "step": seeds.step_key(seed, task, epoch, step, rank),
    }
    assert len({as_the_cpu_sees_it(key) for key in keys.values()}) == len(keys), keys
    for key in keys.values():
        torch.Generator().manual_seed(key)


@given(SEEDS)
def test_heads_and_alignments_of_one_run_never_meet(seed) -> None:
    tasks = (0, 1, 2, 99, 4095, 4096, seeds.MAX_TASKS - 1)
    keys = [as_the_cpu_sees_it(key(seed, t)) for key in (seeds.head_key, seeds.alignment_key) for t in tasks]
    assert len(set(keys)) == len(keys)


def test_steps_of_many_tasks_epochs_and_ranks_have_keys_of_their_own() -> None:
    grid = itertools.product((0, 1993, 2**32 - 1), range(5), range(20), range(40), range(4))
    keys = [seeds.step_key(*place) for place in grid]
    assert len(set(keys)) == len(keys)


def test_keys_of_published_results_stay() -> None:
    assert seeds.head_key(1993, 3) == 1993 * 2**20 + 3
    assert seeds.alignment_key(1993, 3) == 1993 * 2**20 + 65536 + 3
    assert seeds.weights_key(1993) == 29592311057018277
    assert seeds.step_key(1993, 0, 0, 0, 0) == 4085240527833029143


def test_purposes_and_draws_of_the_data_plan_never_meet() -> None:
    purposes = (seeds.ORDER, seeds.FLIP, seeds.BRIGHTNESS, seeds.CROP)
    counters = [seeds.plan_counter(purpose, draw) for purpose in purposes for draw in (*range(20), 2**16 - 1)]
    assert len(set(counters)) == len(counters) and purposes == (0, 1, 2, 3)
