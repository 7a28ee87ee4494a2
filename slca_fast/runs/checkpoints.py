"""When a run saves, and what."""

from __future__ import annotations

import time

import torch

from slca_fast.config_file import config_to_dict
from slca_fast.machine.ranks import Ranks
from slca_fast.metrics import TaskResult
from slca_fast.runs.clock import Clock
from slca_fast.runs.results import confusion_tensors
from slca_fast.runs.setup import Setup
from slca_fast.runs.state import Position, RunState
from slca_fast.training.stage1 import NonFiniteLoss


class Checkpoints:
    """Writes a run's checkpoints: rank 0 for all."""

    def __init__(self, setup: Setup, ranks: Ranks, clock: Clock) -> None:
        self._setup, self._ranks, self._clock = setup, ranks, clock
        self._saved_at, self._save_seconds = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for a checkpoint within a task; the same on every rank."""
        every = 60 * self._setup.config.checkpoint.every_minutes
        elapsed = time.monotonic() - self._saved_at
        # However slow the disk, writing takes no more than a hundredth of the time; 0 minutes is an explicit wish.
        due = elapsed >= every and (every == 0 or elapsed >= 99 * self._save_seconds)
        # The clocks of several ranks differ; rank 0's counts.
        return self._ranks.from_first(lambda: due)

    def save(self, position: Position, newest: TaskResult | None, optimizer: torch.optim.Optimizer | None) -> None:
        """Saves the run at ``position``, ``newest`` being the result of the last finished task.

        Raises NonFiniteLoss, on all ranks, for weights that are not finite.
        """
        setup = self._setup
        if (name := setup.learned.not_finite()) is not None:
            # A checkpoint that holds NaN would be worse than none.
            raise NonFiniteLoss(
                f"the weights hold NaN or infinity ({name}) in task {position.task + 1}: lower --optim.lr; "
                f"the checkpoints before are kept"
            )
        if not self._ranks.is_first:
            return
        began = time.monotonic()
        state = RunState(
            position=position,
            preset=setup.preset,
            config=config_to_dict(setup.config),
            data_sha256=setup.data_sha256,
            frozen_sha256=setup.frozen_sha256,
            num_ranks=self._ranks.size,
            class_names=setup.dataset.class_names,
            class_order=setup.plan.class_order,
            task_sizes=setup.plan.sizes,
            clock=self._clock.to_dict(),
            metrics_bytes=setup.folder.metrics_bytes,
            attention=setup.execution.attention,
            blocks=setup.execution.blocks,
        )
        tensors = setup.learned.tensors(optimizer)
        if newest is not None and newest.confusion is not None:
            tensors["confusion"] = confusion_tensors(newest.confusion)
        setup.folder.save_position(state, tensors, setup.config.checkpoint.keep)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began
        self._clock.checkpoint_seconds += self._save_seconds
