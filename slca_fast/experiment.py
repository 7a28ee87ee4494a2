"""Algorithm 1: a whole continual-learning run. The only file that knows both stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from slca_fast.config import Config
from slca_fast.data.stream import ImageSet
from slca_fast.errors import UserError
from slca_fast.machine.float32 import fast_float32_products
from slca_fast.machine.process import keep_few_products, steady_process
from slca_fast.machine.ranks import ALONE, Ranks
from slca_fast.runs.checkpoints import Checkpoints
from slca_fast.runs.clock import Clock
from slca_fast.runs.observer import Observer
from slca_fast.runs.setup import Setup, set_up
from slca_fast.runs.state import Position
from slca_fast.runs.summary import Summaries
from slca_fast.training.evaluation import evaluate
from slca_fast.training.features import StoppedPass, extract_features
from slca_fast.training.stage1 import EpochReport, Stage1, Stopped

OUT_OF_MEMORY = (
    "out of memory in {where}: lower --optim.batch_size, keep images elsewhere with --data.cache host (or off), "
    "or compute with --runtime.precision bf16"
)


class Interrupted(Exception):
    """A stop was asked for; everything up to now is on disk in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped; add --resume to go on from {folder}")
        self.folder = folder


def run(
    config: Config,
    *,
    preset: str = "custom",
    resume: bool = False,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Trains and evaluates the whole stream of ``config`` and returns its summary.

    Everything is written below ``config.output`` (default ``runs/<preset>-seed<seed>``). ``resume`` continues the
    newest valid checkpoint there. ``should_stop`` is asked between batches; when it says so a checkpoint is written
    and Interrupted raised. ``ranks``: this process's place among several on the same run; all return the summary.
    Raises UserError for options and DataError for data that cannot be used, before anything is written, and OSError
    with the file's name when the disk fails; ``resume`` then goes on from the last checkpoint.
    """
    observer, clock = observer or Observer(), Clock(ranks)
    keep_few_products()
    try:
        with closing(set_up(config, preset, resume, observer, ranks, clock)) as setup:
            with fast_float32_products(setup.device), steady_process(setup.device):
                return Experiment(setup, observer, should_stop, ranks, clock).run()
    finally:
        observer.closed()


class Experiment:
    """One run from where its checkpoints left it to its summary."""

    def __init__(
        self, setup: Setup, observer: Observer, should_stop: Callable[[], bool], ranks: Ranks, clock: Clock
    ) -> None:
        self.observer, self.should_stop, self.ranks, self.clock = observer, should_stop, ranks, clock
        self.setup = setup
        self.config, self.plan, self.stream, self.folder = setup.config, setup.plan, setup.stream, setup.folder
        self.learned, self.execution, self.device = setup.learned, setup.execution, setup.device
        self.results = list(setup.results)
        self.summaries = Summaries(setup, ranks, clock)
        self.checkpoints = Checkpoints(setup, ranks, clock)
        self.position, self.optimizer_state = setup.position, setup.optimizer_state

    def run(self) -> dict[str, Any]:
        """The main loop of the paper."""
        if self.position.task == self.plan.num_tasks:
            summary = self.ranks.from_first(self.folder.summary)
            return self.summaries.write("complete", self.results) if summary is None else summary
        if self.execution.compiled:
            with self.clock.phase("compile"):
                self.learned.backbone.warm_up(self.config.data.image_size, self.execution.precision)
        for task in range(self.position.task, self.plan.num_tasks):
            images = self.stream.train(task)
            self._train(images, task)
            self._remember(images, task)
            self._classify(task)
            self._evaluate(self.stream.seen_test(task))
            self._finish(task)
        return self.summaries.write("complete", self.results)

    def _train(self, images: ImageSet, task: int) -> None:
        """Stage 1."""
        self.observer.task_started(task, self.plan.num_tasks, self.plan.sizes[task], images.num_images)
        learned = self.learned
        if self.position.begins_task:
            with self._interruptible("statistics"):
                learned.kept = learned.method.before_task(task, lambda: self._features(images))
        head = learned.head_of(task, self.plan.sizes[task], self.config.seed, self.device)
        stage1 = Stage1(
            learned.backbone,
            head,
            images,
            self.config,
            task,
            self.plan.offsets[task],
            self.execution.precision,
            self.ranks,
            self.optimizer_state,
        )
        self.optimizer_state = None
        for epoch in range(self.position.epoch, self.config.optim.epochs):
            self.observer.phase_started("stage 1", images.num_images)
            report = self._train_epoch(stage1, epoch)
            try:
                self._log_epoch(report, images)
            except StoppedPass:
                # The epoch counts as done but for its last word: the accuracy comes after the resume.
                self._stop_at(Position(task, epoch, images.num_steps, report.loss_sum), stage1.optimizer)
            self.position = Position(task, epoch + 1)
            if epoch + 1 < self.config.optim.epochs and self.checkpoints.due():
                self._save(stage1.optimizer)
        self._stop_if_asked()

    def _train_epoch(self, stage1: Stage1, epoch: int) -> EpochReport:
        at = self.position
        with self.clock.phase("stage1"):
            try:
                return stage1.run_epoch(epoch, at.step, at.loss_sum, self.observer.advanced, self.should_stop)
            except Stopped as stop:
                self._stop_at(Position(at.task, stop.epoch, stop.step, stop.loss_sum), stage1.optimizer)
            except torch.OutOfMemoryError as error:
                raise UserError(OUT_OF_MEMORY.format(where=f"stage 1 on {self.device}")) from error

    def _log_epoch(self, report: EpochReport, images: ImageSet) -> None:
        self.clock.epoch_finished(report)
        accuracy = {}
        every = self.config.eval.every_epochs
        if every and (report.epoch + 1) % every == 0:
            with self.clock.phase("evaluation"):
                accuracy = {
                    "train_accuracy": self._accuracy_now(images),
                    "test_accuracy": self._accuracy_now(self.stream.seen_test(report.task)),
                }
        speed = report.num_images / report.seconds
        self.folder.log("epoch", **dataclasses.asdict(report), **accuracy, images_per_second=speed)
        self.observer.epoch_finished(report, accuracy)

    def _accuracy_now(self, images: ImageSet) -> float:
        return evaluate(self.learned.heads.linear(), *self._features(images), self.plan).accuracy

    def _remember(self, images: ImageSet, task: int) -> None:
        """The method's memory of the task, from one pass over its images."""
        method = self.learned.method
        if not method.remembers:
            return
        self.observer.phase_started("statistics", images.num_images)
        with self._interruptible("statistics"):
            method.remember(task, *self._features(images, self.observer.advanced), self.learned.kept)
            # Written once, for good; later checkpoints refer to it by task.
            self.folder.save_memory(task, method)
        self._stop_if_asked()

    def _classify(self, task: int) -> None:
        """Stage 2."""

        def after_epoch(epoch: int, loss: float) -> None:
            self.folder.log("align", task=task, epoch=epoch, loss=loss)
            if self.ranks.any(self.should_stop()):
                raise StoppedPass

        self.observer.phase_started("alignment", 0)
        with self._interruptible("alignment"):
            classifier = self.learned.method.classifier(self.learned.heads.linear(), task, after_epoch)
            tensors = list(classifier.tensors().values())
            # Computed alike everywhere; but not every kernel promises the same bits on every device.
            self.ranks.copy_from_first(tensors)
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise UserError(
                f"the aligned classifier of task {task + 1} holds NaN or infinity: lower --align.lr, or raise "
                f"--align.temperature or --align.ridge"
            )
        self.learned.classifier = classifier
        self._stop_if_asked()

    def _evaluate(self, images: ImageSet) -> None:
        assert self.learned.classifier is not None
        self.observer.phase_started("evaluation", images.num_images)
        with self._interruptible("evaluation"):
            features, labels = self._features(images, self.observer.advanced)
            result = evaluate(self.learned.classifier, features, labels, self.plan)
        if self.results:
            self.results[-1] = dataclasses.replace(self.results[-1], confusion=None)
        self.results.append(result)

    def _features(
        self, images: ImageSet, on_step: Callable[[int], None] = lambda num_images: None
    ) -> tuple[Tensor, Tensor]:
        backbone, precision = self.learned.backbone, self.execution.precision
        return extract_features(backbone, images, precision, on_step, self.ranks, self.should_stop)

    def _finish(self, task: int) -> None:
        result = self.results[-1]
        self.folder.log("task", task=task, accuracy=result.accuracy, top5=result.top5, per_task=result.per_task)
        self.position, self.learned.kept = Position(task + 1), {}
        if self.ranks.is_first:
            # Before the checkpoint that counts on it.
            self.folder.results.append(task, result)
        self._save(None)
        if task + 1 < self.plan.num_tasks and self.summaries.due():
            self.summaries.write("running", self.results)
        self.observer.task_finished(task, self.plan.num_tasks, result)

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.checkpoints.save(self.position, self.results[-1] if self.results else None, optimizer)

    def _stop_if_asked(self) -> None:
        if self.ranks.any(self.should_stop()):
            self._stop_at(self.position, None)

    def _stop_at(self, position: Position, optimizer: torch.optim.Optimizer | None) -> NoReturn:
        self.position = position
        self._save(optimizer)
        if self.summaries.behind(self.results):
            self.summaries.write("running", self.results)
        raise Interrupted(self.folder.path) from None

    @contextmanager
    def _interruptible(self, phase: str) -> Iterator[None]:
        """A phase outside stage 1: quick to repeat, so a stop within saves only what was before it."""
        try:
            with self.clock.phase(phase):
                yield
        except StoppedPass:
            # All epochs are done, so the optimizer has served.
            self._stop_at(self.position, None)
        except torch.OutOfMemoryError as error:
            raise UserError(OUT_OF_MEMORY.format(where=f"a pass over the images on {self.device}")) from error
