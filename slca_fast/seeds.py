"""The keys of every random stream of a run: what the seed decides, and how.

Never change a key: runs made before could not be repeated. The class order comes from numpy's legacy generator, as the
field makes it (tasks.class_order); the data plan from Philox, keyed by the seed, with a counter for every (sample,
purpose and draw, epoch, task) (data/plan.py); a class's samples from Philox, keyed by a number that the alignment's
generator draws (kernels/gaussian_sampling); everything else from torch's generators, whose keys are below.

torch's CPU generator looks at the low 32 bits of its key alone. So a head's first weights and an alignment's samples
depend on the low 12 bits of the seed, and bits 17 to 19 tell the streams apart on every device: they are 0 for heads
and alignment, 1 for fresh weights, 2 for the steps of stage 1.
"""

from __future__ import annotations

import hashlib
import struct

ORDER, FLIP, BRIGHTNESS, CROP = range(4)
"""Purposes of the data plan's numbers."""
MAX_TASKS = 1 << 16
"""Tasks of one run that have keys of their own."""
_ALIGNMENT, _WEIGHTS, _STEP = 1 << 16, 1 << 17, 2 << 17
_FREE_BITS = ~(7 << 17)


def plan_counter(purpose: int, draw: int) -> int:
    """The counter word of the data plan that tells purposes and the draws of one purpose apart."""
    assert 0 <= draw < 1 << 16
    return purpose << 16 | draw


def head_key(seed: int, task: int) -> int:
    """First weights of the head of ``task``."""
    return (seed << 20) + task


def alignment_key(seed: int, task: int) -> int:
    """Features sampled, their scales and their order, in the alignment after ``task``."""
    return (seed << 20) + _ALIGNMENT + task


def weights_key(seed: int) -> int:
    """Backbone weights that no checkpoint gives."""
    return (_mixed(b"weights", seed) & _FREE_BITS) | _WEIGHTS


def step_key(seed: int, task: int, epoch: int, step: int, rank: int) -> int:
    """What a training step draws from torch's default generator: dropout, where a user asks for it."""
    return (_mixed(b"step", seed, task, epoch, step, rank) & _FREE_BITS) | _STEP


def _mixed(purpose: bytes, *numbers: int) -> int:
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8, person=purpose)
    return int.from_bytes(digest.digest(), "little") >> 1
