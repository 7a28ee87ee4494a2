"""Progress on the terminal: rich bars when someone watches, plain lines in a pipe."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from slca_fast import metrics
from slca_fast.metrics import TaskResult
from slca_fast.runs.observer import Observer
from slca_fast.runs.record import RunRecord
from slca_fast.training.stage1 import EpochReport


def observer_for(console: Console, prefix: str = "", num_epochs: int = 1) -> Observer:
    """The observer that fits ``console``: bars on a terminal, lines elsewhere."""
    return Bars(console, prefix, num_epochs) if console.is_terminal else Lines(console, prefix)


class Lines(Observer):
    """One plain line per message, epoch-in-ten and task: readable in a log file."""

    def __init__(self, console: Console, prefix: str = "") -> None:
        self.console, self.prefix = console, prefix
        self.last_line = 0.0

    def message(self, text: str) -> None:
        self._line(text)

    def task_started(self, task: int, num_tasks: int, num_classes: int, num_images: int) -> None:
        self._line(f"task {task + 1}/{num_tasks}: {num_classes} classes, {num_images} images")

    def epoch_finished(self, report: EpochReport, accuracy: dict[str, float]) -> None:
        last = report.epoch + 1 == report.num_epochs
        # A short epoch is no news: a line every five seconds, the last epoch and every accuracy.
        if last or accuracy or time.monotonic() - self.last_line >= 5:
            self._line(_epoch_text(report, accuracy))

    def task_finished(self, task: int, num_tasks: int, result: TaskResult) -> None:
        self._line(_task_text(task, num_tasks, result))

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.console.print(f"{self.prefix}{text}", highlight=False, markup=False, soft_wrap=True)


class Bars(Observer):
    """A live bar with the phase, images done, speed and remaining time, above lines for what is finished."""

    def __init__(self, console: Console, prefix: str = "", num_epochs: int = 1) -> None:
        self.console, self.prefix, self.num_epochs = console, prefix, num_epochs
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self.bar: TaskID | None = None
        self.label, self.left = "", ""
        self.phase_began, self.phase_images = 0.0, 0
        self.run_began, self.epochs_done, self.epochs_total, self.epoch = time.monotonic(), 0, 0, 0

    def message(self, text: str) -> None:
        self.console.print(f"{self.prefix}{text}", highlight=False, markup=False)

    def indexing(self, done: int, total: int) -> None:
        if self.bar is None:
            self.phase_started("image files", total)
        assert self.bar is not None
        self.progress.update(self.bar, completed=done)

    def task_started(self, task: int, num_tasks: int, num_classes: int, num_images: int) -> None:
        self.label = f"task {task + 1}/{num_tasks}"
        self.epoch = 0
        self.epochs_total = self.epochs_done + (num_tasks - task) * self.num_epochs

    def phase_started(self, phase: str, num_images: int) -> None:
        if self.bar is None:
            self.bar = self.progress.add_task("", speed="", left="")
            self.progress.start()
        shown = f"epoch {self.epoch + 1}/{self.num_epochs}" if phase == "stage 1" else phase
        self.phase_began, self.phase_images = time.monotonic(), 0
        self.progress.reset(
            self.bar,
            total=num_images or None,
            description=f"{self.prefix}{self.label} {shown}",
            speed="",
            left=self.left,
        )

    def advanced(self, num_images: int) -> None:
        self.phase_images += num_images
        speed = self.phase_images / max(time.monotonic() - self.phase_began, 1e-9)
        assert self.bar is not None, "a phase has started"
        self.progress.update(self.bar, advance=num_images, speed=f"{speed:.0f} img/s")

    def epoch_finished(self, report: EpochReport, accuracy: dict[str, float]) -> None:
        self.epoch, self.epochs_done = report.epoch + 1, self.epochs_done + 1
        per_epoch = (time.monotonic() - self.run_began) / self.epochs_done
        self.left = f"ETA {_duration(per_epoch * (self.epochs_total - self.epochs_done))}"
        if accuracy:
            self.message(_epoch_text(report, accuracy))

    def task_finished(self, task: int, num_tasks: int, result: TaskResult) -> None:
        self.message(_task_text(task, num_tasks, result))

    def closed(self) -> None:
        self.progress.stop()


def outcome_text(run: RunRecord) -> str:
    """One line on a finished run: the metrics of its accuracies that tables show, and the seconds it took."""
    shown = [metric for metric in metrics.columns() if metric.function is not None]
    texts = [f"{metric.heading} {metric.text(run.metric(metric.name), metric.decimals)}" for metric in shown]
    seconds = metrics.metric_named("total_seconds")
    return ", ".join([*texts, f"{seconds.text(run.metric(seconds.name), seconds.decimals)} s"])


def _epoch_text(report: EpochReport, accuracy: dict[str, float]) -> str:
    text = f"task {report.task + 1} epoch {report.epoch + 1}/{report.num_epochs}: loss {report.loss:.4f}, "
    text += f"{report.num_images / report.seconds:.0f} img/s"
    return text + "".join(f", {name.replace('_', ' ')} {value:.2f}" for name, value in accuracy.items())


def _task_text(task: int, num_tasks: int, result: TaskResult) -> str:
    per_task = " ".join(f"{value:.1f}" for value in result.per_task)
    return f"after task {task + 1}/{num_tasks}: accuracy {result.accuracy:.2f} (by task: {per_task})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
