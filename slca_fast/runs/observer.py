"""What a run tells the outside while it goes on; the base class keeps silent."""

from __future__ import annotations

from slca_fast.metrics import TaskResult
from slca_fast.training.stage1 import EpochReport


class Observer:
    """Receives a run's progress; override what is of interest. Never influences the run."""

    def message(self, text: str) -> None:
        """A fact worth a line (which backend runs and why, a checkpoint that was ignored)."""

    def indexing(self, done: int, total: int) -> None:
        """``done`` of ``total`` image files have been read."""

    def task_started(self, task: int, num_tasks: int, num_classes: int, num_images: int) -> None:
        """Stage 1 of ``task`` (0-based) begins or continues."""

    def phase_started(self, phase: str, num_images: int) -> None:
        """A pass over ``num_images`` images begins; ``advanced`` follows."""

    def advanced(self, num_images: int) -> None:
        """So many more images of the phase are done."""

    def epoch_finished(self, report: EpochReport, accuracy: dict[str, float]) -> None:
        """An epoch of stage 1 is done; ``accuracy`` holds train and test accuracy (percent) when asked for."""

    def task_finished(self, task: int, num_tasks: int, result: TaskResult) -> None:
        """A task has been evaluated."""

    def closed(self) -> None:
        """Nothing follows."""
