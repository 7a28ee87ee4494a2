"""Algorithm 1: a whole continual-learning run. The only file that knows both stages."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slca_fast.config import Config
from slca_fast.config_file import config_to_dict, config_to_yaml
from slca_fast.data.index import load_dataset
from slca_fast.data.share import share_of_machine
from slca_fast.data.stream import ImageSet, Stream
from slca_fast.errors import UserError
from slca_fast.files import replace_json, replace_text
from slca_fast.machine.environment import (
    device_description,
    peak_memory_bytes,
    pick_device,
    pick_precision,
    versions,
)
from slca_fast.machine.float32 import fast_float32_products, float32_products_backend
from slca_fast.machine.process import steady_process
from slca_fast.machine.ranks import ALONE, Ranks
from slca_fast.methods.alignment import align
from slca_fast.methods.class_statistics import measure_classes
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.methods.presets import method_of_config
from slca_fast.metrics import TaskResult, summary_metrics
from slca_fast.model.build import build_backbone
from slca_fast.model.fast_path import Execution, Remembered, choose
from slca_fast.model.head import Classifier, LinearClassifier
from slca_fast.ops.registry import automatic_backends
from slca_fast.runs.folder import RunFolder
from slca_fast.runs.observer import Observer
from slca_fast.runs.resume import (
    Position,
    data_sha256,
    frozen_state,
    refuse_changes,
    restore_frozen,
    restore_model,
    restore_optimizer,
    saved_progress,
    snapshot_tensors,
    trainable_state,
)
from slca_fast.runs.snapshot import BadSnapshot, read_snapshot, weights_sha256, write_snapshot
from slca_fast.runs.summary import write_results
from slca_fast.runs.tracking import open_trackers
from slca_fast.tasks import TaskPlan, plan_tasks
from slca_fast.training.evaluation import evaluate
from slca_fast.training.features import StoppedPass, extract_features
from slca_fast.training.optim import optimizer_backend
from slca_fast.training.stage1 import EpochReport, NonFiniteLoss, Stage1, Stopped

OUT_OF_MEMORY = (
    "out of memory in {where}: lower --optim.batch_size, keep images elsewhere with --data.cache host (or off), "
    "or compute with --runtime.precision bf16"
)
PHASES = ("stage1", "statistics", "alignment", "evaluation", "data", "compile")


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
    experiment = Experiment(config, preset, resume, observer or Observer(), should_stop, ranks)
    try:
        with fast_float32_products(experiment.device), steady_process(experiment.device):
            return experiment.run()
    finally:
        experiment.close()


class Experiment:
    """One run's values, from the configuration to the summary."""

    def __init__(
        self,
        config: Config,
        preset: str,
        resume: bool,
        observer: Observer,
        should_stop: Callable[[], bool],
        ranks: Ranks,
    ) -> None:
        self.began = time.perf_counter()
        self.ranks = ranks
        self.preset, self.observer, self.should_stop = preset, observer, should_stop
        self.config = config = dataclasses.replace(config, output=config.output or f"runs/{preset}-seed{config.seed}")
        self.folder: RunFolder | None = None
        self.stream: Stream | None = None
        self.device = ranks.device(pick_device(config.runtime.device))
        self.precision = pick_precision(config.runtime.precision, self.device)
        if config.runtime.num_threads is not None:
            torch.set_num_threads(config.runtime.num_threads)
        with ranks.first_before_others():
            self.dataset = load_dataset(config.data, observer.indexing)
        self.data_hash = data_sha256(self.dataset)
        ranks.require_same("images", self.data_hash)
        self.plan: TaskPlan = plan_tasks(
            len(self.dataset.class_names),
            config.seed,
            num_domains=len(self.dataset.train.domain_names) or 1,
            **dataclasses.asdict(config.tasks),
        )
        self.backbone = build_backbone(config.model, config.data.image_size, config.seed).to(self.device)
        self.remembered = Remembered()
        self.classifier = Classifier(self.backbone.feature_dim)
        self.gaussians = ClassGaussians(self.backbone.feature_dim, ridge=config.align.ridge)
        self.aligned: LinearClassifier | None = None
        self.results: list[TaskResult] = []
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.earlier_seconds = 0.0
        self.trained_images, self.train_seconds = 0, 0.0
        self.position = Position(0, 0, 0, 0.0)
        self.optimizer_state: dict[str, Tensor] | None = None
        self.frozen_hash = weights_sha256(frozen_state(self.backbone))
        if not ranks.alone:
            ranks.require_same("weights", weights_sha256(self.backbone.state_dict()))
        self.folder = RunFolder(Path(config.output), resume, owner=ranks.is_first)
        if ranks.is_first:
            self.folder.trackers = open_trackers(config.track, self.folder.path, config_to_dict(config))
        self.saved_at = time.monotonic()
        self.save_seconds = self.checkpoint_seconds = 0.0
        share = share_of_machine(config.data, ranks, self.device)
        self.stream = Stream(self.dataset, self.plan, share, config.optim.batch_size, self.device)
        if resume:
            self._restore()
        else:
            self._begin_folder()
        self._choose_execution()
        self.seconds["data"] += time.perf_counter() - self.began

    def run(self) -> dict[str, Any]:
        """The main loop of the paper."""
        if self.position.task == self.plan.num_tasks:
            return self._finished()
        self._compile()
        for task in range(self.position.task, self.plan.num_tasks):
            head = self._head_of(task)
            self._train(head, self.stream.train(task), task)
            if self.config.align.epochs > 0:
                self.gaussians = self.gaussians.extended(self._measure(self.stream.train(task), task))
            self.aligned = self._align(task)
            self.results.append(self._evaluate(self.stream.seen_test(task)))
            self._finish(task)
        return self._write_summary("complete")

    def _finished(self) -> dict[str, Any]:
        summary = self.ranks.from_first(self.folder.summary)
        return self._write_summary("complete") if summary is None else summary

    def _choose_execution(self) -> None:
        """Once the checkpoint has said what the run began with; rank 0 for all."""
        runtime, batch_size = self.config.runtime, self.config.optim.batch_size
        num_images = -(-batch_size // self.ranks.size)
        chosen = self.ranks.from_first(
            lambda: choose(
                self.backbone.vit,
                self.device,
                self.precision,
                num_images,
                compiled=runtime.compile,
                attention=runtime.attention,
                remembered=self.remembered,
            ).to_dict()
        )
        self.execution = Execution.from_dict(chosen)
        self.backbone.use(self.execution, num_training=num_images, num_evaluation=batch_size)
        if self.ranks.is_first and (missing := self.remembered.missing_in(self.execution)):
            self.observer.message(missing)

    def _compile(self) -> None:
        if self.execution.compiled and self.position.task < self.plan.num_tasks:
            with self._phase("compile"):
                self.backbone.warm_up(self.config.data.image_size, self.precision)

    def close(self) -> None:
        """Gives back the data backends and the folder's lock."""
        self.observer.closed()
        if self.stream is not None:
            self.stream.close()
        if self.folder is not None:
            self.folder.close()

    def _begin_folder(self) -> None:
        if not self.ranks.is_first:
            return
        replace_text(self.folder.path / "config.yaml", config_to_yaml(self.config, self.preset))
        replace_json(self.folder.path / "problems.json", self._problems())
        write_snapshot(self.folder.frozen, {"backbone": frozen_state(self.backbone)}, {})
        self.folder.log("start", preset=self.preset, seed=self.config.seed, data_sha256=self.data_hash)

    def _problems(self) -> list[str]:
        found = [*self.dataset.problems, *self.stream.problems]
        return list(dict.fromkeys(str(problem) for problem in found))

    def _head_of(self, task: int) -> nn.Linear:
        if task < len(self.classifier.heads):
            return self.classifier.heads[task]
        return self.classifier.grow(self.plan.sizes[task], self.config.seed, self.device)

    def _train(self, head: nn.Linear, images: ImageSet, task: int) -> None:
        self.observer.task_started(task, self.plan.num_tasks, self.plan.sizes[task], images.num_images)
        stage1 = Stage1(
            self.backbone, head, images, self.config, task, self.plan.offsets[task], self.precision, self.ranks
        )
        if self.optimizer_state is not None:
            restore_optimizer(stage1.optimizer, self.optimizer_state)
            self.optimizer_state = None
        for epoch in range(self.position.epoch, self.config.optim.epochs):
            self.observer.phase_started("stage 1", images.num_images)
            with self._phase("stage1"):
                try:
                    report = stage1.run_epoch(
                        epoch, self.position.step, self.position.loss_sum, self.observer.advanced, self.should_stop
                    )
                except Stopped as stop:
                    self._save(Position(task, stop.epoch, stop.step, stop.loss_sum), stage1.optimizer)
                    raise Interrupted(self.folder.path) from None
                except torch.OutOfMemoryError as error:
                    raise UserError(OUT_OF_MEMORY.format(where=f"stage 1 on {self.device}")) from error
            try:
                self._log_epoch(report, images)
            except StoppedPass:
                # The epoch counts as done but for its last word: the accuracy comes after the resume.
                self._save(Position(task, epoch, images.num_steps, report.loss_sum), stage1.optimizer)
                raise Interrupted(self.folder.path) from None
            self.position = Position(task, epoch + 1, 0, 0.0)
            last = epoch + 1 == self.config.optim.epochs
            if not last and self._checkpoint_is_due():
                self._save(self.position, stage1.optimizer)
        self._stop_here()

    def _checkpoint_is_due(self) -> bool:
        elapsed, every = time.monotonic() - self.saved_at, 60 * self.config.checkpoint.every_minutes
        # However slow the disk, writing takes no more than a hundredth of the time; 0 minutes is an explicit wish.
        due = elapsed >= every and (every == 0 or elapsed >= 99 * self.save_seconds)
        # The clocks of several ranks differ; rank 0's counts.
        return self.ranks.from_first(lambda: due)

    def _log_epoch(self, report: EpochReport, images: ImageSet) -> None:
        self.seconds["stage1"] -= report.data_seconds
        self.seconds["data"] += report.data_seconds
        self.trained_images += report.num_images
        self.train_seconds += report.seconds
        extra = {}
        every = self.config.eval.every_epochs
        if every and (report.epoch + 1) % every == 0:
            with self._phase("evaluation"):
                extra = {
                    "train_accuracy": self._accuracy_now(images),
                    "test_accuracy": self._accuracy_now(self.stream.seen_test(report.task)),
                }
        self.folder.log(
            "epoch", **dataclasses.asdict(report), **extra, images_per_second=report.num_images / report.seconds
        )
        self.observer.epoch_finished(report, extra)

    def _accuracy_now(self, images: ImageSet) -> float:
        features, labels = self._features(images, should_stop=self.should_stop)
        return evaluate(self.classifier.linear(), features, labels, self.plan).accuracy

    def _measure(self, images: ImageSet, task: int) -> ClassGaussians:
        self.observer.phase_started("statistics", images.num_images)
        with self._phase("statistics"), self._saved_when_stopped():
            measured = measure_classes(
                self.backbone,
                images,
                self.config.align.ridge,
                self.precision,
                self.observer.advanced,
                self.ranks,
                self.should_stop,
            )
            # Written once, for good; later checkpoints refer to it by task.
            self.folder.save_statistics(task, measured)
            measured.factorize()
        self._stop_here()
        return measured

    def _align(self, task: int) -> LinearClassifier:
        self.observer.phase_started("alignment", 0)

        def after_epoch(epoch: int, loss: float) -> None:
            self.folder.log("align", task=task, epoch=epoch, loss=loss)
            if self.ranks.any(self.should_stop()):
                raise StoppedPass

        with self._phase("alignment"), self._saved_when_stopped():
            aligned = align(
                self.classifier.linear(),
                self.gaussians,
                self.config.align,
                self.config.optim.weight_decay,
                self.config.seed,
                after_epoch,
            )
            # Computed alike everywhere; but not every kernel promises the same bits on every device.
            self.ranks.copy_from_first([aligned.weight_CD, aligned.bias_C])
        if not (aligned.weight_CD.isfinite().all() and aligned.bias_C.isfinite().all()):
            raise UserError(
                f"the aligned classifier of task {task + 1} holds NaN or infinity: lower --align.lr, or raise "
                f"--align.temperature or --align.ridge"
            )
        self._stop_here()
        return aligned

    def _evaluate(self, images: ImageSet) -> TaskResult:
        self.observer.phase_started("evaluation", images.num_images)
        with self._phase("evaluation"), self._saved_when_stopped():
            features, labels = self._features(images, self.observer.advanced, self.should_stop)
            return evaluate(self.aligned, features, labels, self.plan)

    def _features(
        self,
        images: ImageSet,
        on_step: Callable[[int], None] = lambda num_images: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[Tensor, Tensor]:
        return extract_features(self.backbone, images, self.precision, on_step, self.ranks, should_stop)

    def _finish(self, task: int) -> None:
        result = self.results[-1]
        self.folder.log("task", task=task, accuracy=result.accuracy, top5=result.top5, per_task=result.per_task)
        self._save(Position(task + 1, 0, 0, 0.0), None)
        self._write_summary("running")
        self.observer.task_finished(task, self.plan.num_tasks, result)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] += time.perf_counter() - start

    def _stop_here(self) -> None:
        with self._saved_when_stopped():
            if self.ranks.any(self.should_stop()):
                raise StoppedPass

    @contextmanager
    def _saved_when_stopped(self) -> Iterator[None]:
        try:
            yield
        except StoppedPass:
            # All epochs are done, so the optimizer has served; the phases after stage 1 are quick to repeat.
            self._save(self.position, None)
            raise Interrupted(self.folder.path) from None
        except torch.OutOfMemoryError as error:
            raise UserError(OUT_OF_MEMORY.format(where=f"a pass over the images on {self.device}")) from error

    def _save(self, position: Position, optimizer: torch.optim.Optimizer | None) -> None:
        self.position = position
        self._require_finite()
        if not self.ranks.is_first:
            return
        began = time.monotonic()
        state = {
            "position": dataclasses.asdict(position),
            "preset": self.preset,
            "config": config_to_dict(self.config),
            "data_sha256": self.data_hash,
            "frozen_sha256": self.frozen_hash,
            "num_ranks": self.ranks.size,
            "class_names": list(self.dataset.class_names),
            "class_order": list(self.plan.class_order),
            "task_sizes": list(self.plan.sizes),
            "results": [result.as_dict() for result in self.results],
            "seconds": self.seconds,
            "total_seconds": self._total_seconds(),
            "trained_images": self.trained_images,
            "train_seconds": self.train_seconds,
            "metrics_bytes": self.folder.metrics_bytes,
            "attention": self.execution.attention,
            "blocks": self.execution.blocks,
        }
        self.folder.save_position(
            position.task,
            position.epoch,
            position.step,
            snapshot_tensors(self.backbone, self.classifier, self.aligned, optimizer),
            state,
            self.config.checkpoint.keep,
        )
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - began
        self.checkpoint_seconds += self.save_seconds

    def _require_finite(self) -> None:
        """A checkpoint that holds NaN would be worse than none."""
        for name, tensor in (*trainable_state(self.backbone).items(), *self.classifier.state_dict().items()):
            if not tensor.isfinite().all():
                raise NonFiniteLoss(
                    f"the weights hold NaN or infinity ({name}) in task {self.position.task + 1}: lower --optim.lr; "
                    f"the checkpoints before are kept"
                )

    def _restore(self) -> None:
        """Continues from the newest checkpoint that is intact with everything it needs, else from the start."""
        name = self.ranks.from_first(self._restore_newest)
        if not self.ranks.is_first and name is not None:
            self._restore_from(*read_snapshot(self.folder.checkpoints / name), lambda problem: None)

    def _restore_newest(self) -> str | None:
        for path, tensors, state in self.folder.newest(self.observer.message):
            try:
                self._restore_from(tensors, state, self.observer.message)
            except BadSnapshot as problem:
                self.observer.message(f"checkpoint ignored: {path}: {problem}")
                continue
            self.folder.set_aside_after(path)
            self.folder.rewind_metrics(saved_progress(state).metrics_bytes)
            self.observer.message(
                f"resuming at task {self.position.task + 1}, epoch {self.position.epoch + 1}, "
                f"step {self.position.step + 1}"
            )
            return path.name
        before = self.folder.config()
        if before is not None:
            refuse_changes({"config": before}, self.config, self.data_hash)
        self.folder.start_over()
        self._begin_folder()
        self.observer.message("no checkpoint to continue from: starting from the first task")
        return None

    def _restore_from(
        self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], report: Callable[[str], None]
    ) -> None:
        """Raises BadSnapshot, with nothing but weights changed, when the checkpoint cannot be continued from."""
        progress = saved_progress(state)
        refuse_changes(state, self.config, self.data_hash)
        gaussians = ClassGaussians(self.backbone.feature_dim, ridge=self.config.align.ridge)
        for task in range(progress.position.task if self.config.align.epochs > 0 else 0):
            measured = self.folder.load_statistics(task, self.device, report)
            if measured is None:
                raise BadSnapshot(f"the class statistics of task {task + 1} are lost")
            # Factored task by task, as the first time, so that the factors are the same to the last bit.
            measured.factorize()
            gaussians = gaussians.extended(measured)
        self.frozen_hash = restore_frozen(self.backbone, self.folder.frozen, state, report)
        self.classifier = Classifier(self.backbone.feature_dim)
        self.aligned = restore_model(tensors, self.backbone, self.classifier, self.plan, self.device)
        self.remembered = Remembered(state.get("attention"), state.get("blocks"))
        self.gaussians, self.position, self.results = gaussians, progress.position, progress.results
        self.optimizer_state = tensors.get("optimizer")
        self.seconds, self.trained_images = progress.seconds, progress.trained_images
        self.earlier_seconds = progress.total_seconds

    def _total_seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.began

    def _write_summary(self, status: str) -> dict[str, Any]:
        if not self.ranks.is_first:
            return {**summary_metrics(self.results), "status": status}
        config = self.config
        weights = {
            **{f"backbone.{k}": v for k, v in self.backbone.state_dict().items()},
            **{f"heads.{k}": v for k, v in self.classifier.state_dict().items()},
            **{f"gaussians.{k}": v for k, v in self.gaussians.state_tensors().items()},
        }
        ops, products = automatic_backends(self.device), float32_products_backend(self.device)
        problems = self._problems()
        replace_json(self.folder.path / "problems.json", problems)
        backends = {
            "data": self.stream.backend,
            "optimizer": optimizer_backend(config.optim.name, self.device),
            **self.execution.backends(),
            "fp32 products": products[0],
            **{name: backend for name, (backend, _) in ops.items()},
        }
        facts = {
            "preset": self.preset,
            "method": method_of_config(config),
            "status": status,
            "seed": config.seed,
            "task_sizes": list(self.plan.sizes[: len(self.results)]),
            "class_order": list(self.plan.class_order),
            "class_names": list(self.dataset.class_names),
            "phase_seconds": self.seconds,
            "num_ranks": self.ranks.size,
            "exchange_seconds": self.ranks.seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "total_seconds": self._total_seconds(),
            "train_images_per_second": self.trained_images / self.train_seconds if self.train_seconds else 0.0,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "backends": backends,
            "backend_reasons": {
                "data": self.stream.reason,
                **self.execution.reasons,
                "fp32 products": products[1],
                **{name: why for name, (_, why) in ops.items()},
            },
            "versions": versions(),
            "device": device_description(self.device),
            "cpu_threads": torch.get_num_threads(),
            "precision": self.precision,
            "weights_sha256": weights_sha256(weights),
            "data_sha256": self.data_hash,
            "data_problems": {"quarantined": len(problems), "notes": self.dataset.notes},
        }
        return write_results(self.folder.path, self.results, facts)
