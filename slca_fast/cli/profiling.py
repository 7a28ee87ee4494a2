"""A look inside a run: a torch profiler trace of a few training steps, and where the run's time went by phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from slca_fast.files import replace_text
from slca_fast.metrics import TaskResult
from slca_fast.runs.observer import Observer
from slca_fast.training.stage1 import EpochReport

SKIPPED_STEPS, TRACED_STEPS = 2, 8


class ProfilingObserver(Observer):
    """Passes everything on to ``inner`` and traces steps 3 to 10 of the first task's training."""

    def __init__(self, inner: Observer) -> None:
        self._inner = inner
        self._profile: profile | None = None
        self._num_steps = 0
        self._training = False

    def message(self, text: str) -> None:
        self._inner.message(text)

    def indexing(self, done: int, total: int) -> None:
        self._inner.indexing(done, total)

    def task_started(self, task: int, num_tasks: int, num_classes: int, num_images: int) -> None:
        self._inner.task_started(task, num_tasks, num_classes, num_images)

    def phase_started(self, phase: str, num_images: int) -> None:
        self._training = phase == "stage 1"
        if not self._training:
            self._stop()
        self._inner.phase_started(phase, num_images)

    def advanced(self, num_images: int) -> None:
        if self._training:
            self._num_steps += 1
            if self._num_steps == SKIPPED_STEPS:
                activities = [ProfilerActivity.CPU]
                activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
                self._profile = profile(activities=activities, record_shapes=True)
                self._profile.start()
                self._recording = True
            elif self._num_steps == SKIPPED_STEPS + TRACED_STEPS:
                self._stop()
        self._inner.advanced(num_images)

    def epoch_finished(self, report: EpochReport, accuracy: dict[str, float]) -> None:
        self._inner.epoch_finished(report, accuracy)

    def task_finished(self, task: int, num_tasks: int, result: TaskResult) -> None:
        self._inner.task_finished(task, num_tasks, result)

    def closed(self) -> None:
        self._stop()
        self._inner.closed()

    def write(self, folder: Path, summary: dict[str, Any]) -> Path:
        """Writes ``trace.json`` (for chrome://tracing or Perfetto) and ``phases.txt`` below ``folder``/profile."""
        target = folder / "profile"
        target.mkdir(exist_ok=True)
        text = phase_table(summary)
        if self._profile is not None:
            self._profile.export_chrome_trace(str(target / "trace.json"))
            key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            operators = self._profile.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60)
            text += f"\n\nTraining steps {SKIPPED_STEPS + 1} to {self._num_traced}, by operator\n{operators}"
        replace_text(target / "phases.txt", text + "\n")
        return target

    @property
    def _num_traced(self) -> int:
        return min(self._num_steps, SKIPPED_STEPS + TRACED_STEPS)

    _recording = False

    def _stop(self) -> None:
        if self._recording:
            assert self._profile is not None
            self._recording = False
            self._profile.stop()


def phase_table(summary: dict[str, Any]) -> str:
    """Seconds and share of every phase of a run."""
    total = summary["total_seconds"]
    rows = [*summary["phase_seconds"].items()]
    rows.append(("everything else", total - sum(seconds for _, seconds in rows)))
    lines = [f"{name:<16} {seconds:10.2f} s {100 * seconds / total:6.1f} %" for name, seconds in rows]
    return "\n".join([*lines, f"{'total':<16} {total:10.2f} s"])
