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

from slca_fast.align import align
from slca_fast.checkpoint import weights_sha256, write_snapshot
from slca_fast.config import Config
from slca_fast.config_file import config_to_dict, config_to_yaml
from slca_fast.data.index import load_dataset
from slca_fast.data.stream import ImageSet, Stream
from slca_fast.environment import (
    device_description,
    peak_memory_bytes,
    pick_compile,
    pick_device,
    pick_precision,
    versions,
)
from slca_fast.evaluate import TaskResult, evaluate, extract_features, measure_classes
from slca_fast.files import replace_json, replace_text
from slca_fast.gaussians import ClassGaussians
from slca_fast.model.attention import choose_attention
from slca_fast.model.backbone import build_backbone
from slca_fast.model.head import Classifier, LinearClassifier
from slca_fast.ops.registry import automatic_backends
from slca_fast.optim import optimizer_backend
from slca_fast.presets import method_of
from slca_fast.progress import Observer
from slca_fast.resume import (
    Position,
    data_sha256,
    frozen_state,
    refuse_changes,
    restore_model,
    restore_optimizer,
    snapshot_tensors,
)
from slca_fast.run_folder import RunFolder
from slca_fast.summary import write_results
from slca_fast.tasks import TaskPlan, plan_tasks
from slca_fast.tracking import open_trackers
from slca_fast.train import EpochReport, Stage1, Stopped

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
) -> dict[str, Any]:
    """Trains and evaluates the whole stream of ``config`` and returns its summary.

    Everything is written below ``config.output`` (default ``runs/<preset>-seed<seed>``). ``resume`` continues the
    newest valid checkpoint there. ``should_stop`` is asked between batches; when it says so a checkpoint is written
    and Interrupted raised. Raises UserError for options and DataError for data that cannot be used, before anything
    is written.
    """
    experiment = Experiment(config, preset, resume, observer or Observer(), should_stop)
    try:
        return experiment.run()
    finally:
        experiment.close()


class Experiment:
    """One run's values, from the configuration to the summary."""

    def __init__(
        self, config: Config, preset: str, resume: bool, observer: Observer, should_stop: Callable[[], bool]
    ) -> None:
        self.began = time.perf_counter()
        self.preset, self.observer, self.should_stop = preset, observer, should_stop
        self.config = config = dataclasses.replace(config, output=config.output or f"runs/{preset}-seed{config.seed}")
        self.folder: RunFolder | None = None
        self.stream: Stream | None = None
        self.device = pick_device(config.runtime.device)
        self.precision = pick_precision(config.runtime.precision, self.device)
        if config.runtime.num_threads is not None:
            torch.set_num_threads(config.runtime.num_threads)
        self.dataset = load_dataset(config.data, observer.indexing)
        self.data_hash = data_sha256(self.dataset)
        self.plan: TaskPlan = plan_tasks(
            len(self.dataset.class_names),
            config.seed,
            num_domains=len(self.dataset.train.domain_names) or 1,
            **dataclasses.asdict(config.tasks),
        )
        self.backbone = build_backbone(config.model, config.data.image_size, config.seed).to(self.device)
        self.compiled = pick_compile(config.runtime.compile, self.device)
        self._choose_fast_path()
        self.classifier = Classifier(self.backbone.feature_dim)
        self.gaussians = ClassGaussians(self.backbone.feature_dim, ridge=config.align.ridge)
        self.aligned: LinearClassifier | None = None
        self.results: list[TaskResult] = []
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.earlier_seconds = 0.0
        self.trained_images = 0
        self.position = Position(0, 0, 0, 0.0)
        self.optimizer_state: dict[str, Tensor] | None = None
        self.folder = RunFolder(Path(config.output), resume)
        self.folder.trackers = open_trackers(config.track, self.folder.path, config_to_dict(config))
        self.saved_at = time.monotonic()
        self.stream = Stream(self.dataset, self.plan, config.data, config.optim.batch_size, self.device)
        if resume:
            self._restore()
        else:
            self._begin_folder()
        self.seconds["data"] += time.perf_counter() - self.began

    def run(self) -> dict[str, Any]:
        """The main loop of the paper."""
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

    def _choose_fast_path(self) -> None:
        config = self.config
        self.backbone.use_attention(
            choose_attention(
                self.backbone.vit, self.device, self.precision, config.optim.batch_size, config.runtime.attention
            )
        )
        if self.compiled:
            self.backbone.use_compiler(config.optim.batch_size)

    def _compile(self) -> None:
        if self.compiled and self.position.task < self.plan.num_tasks:
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
        replace_text(self.folder.path / "config.yaml", config_to_yaml(self.config))
        replace_json(self.folder.path / "problems.json", [str(problem) for problem in self.dataset.problems])
        write_snapshot(self.folder.frozen, {"backbone": frozen_state(self.backbone)}, {})
        self.folder.log("start", preset=self.preset, seed=self.config.seed, data_sha256=self.data_hash)

    def _head_of(self, task: int) -> nn.Linear:
        if task < len(self.classifier.heads):
            return self.classifier.heads[task]
        return self.classifier.grow(self.plan.sizes[task], self.config.seed, self.device)

    def _train(self, head: nn.Linear, images: ImageSet, task: int) -> None:
        self.observer.task_started(task, self.plan.num_tasks, self.plan.sizes[task], images.num_images)
        stage1 = Stage1(self.backbone, head, images, self.config, task, self.plan.offsets[task], self.precision)
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
            self.position = Position(task, epoch + 1, 0, 0.0)
            self._log_epoch(report, images)
            last = epoch + 1 == self.config.optim.epochs
            if not last and time.monotonic() - self.saved_at >= 60 * self.config.checkpoint.every_minutes:
                self._save(self.position, stage1.optimizer)
        self._stop_here()

    def _log_epoch(self, report: EpochReport, images: ImageSet) -> None:
        self.seconds["stage1"] -= report.data_seconds
        self.seconds["data"] += report.data_seconds
        self.trained_images += report.num_images
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
        features, labels = extract_features(self.backbone, images, self.precision)
        return evaluate(self.classifier.linear(), features, labels, self.plan).accuracy

    def _measure(self, images: ImageSet, task: int) -> ClassGaussians:
        self.observer.phase_started("statistics", images.num_images)
        with self._phase("statistics"):
            measured = measure_classes(
                self.backbone, images, self.config.align.ridge, self.precision, self.observer.advanced
            )
            # Written once, for good; later checkpoints refer to it by task.
            measured.save(self.folder.statistics(task))
            measured.factorize()
        self._stop_here()
        return measured

    def _align(self, task: int) -> LinearClassifier:
        self.observer.phase_started("alignment", 0)
        with self._phase("alignment"):
            aligned = align(
                self.classifier.linear(),
                self.gaussians,
                self.config.align,
                self.config.optim.weight_decay,
                self.config.seed,
                lambda epoch, loss: self.folder.log("align", task=task, epoch=epoch, loss=loss),
            )
        self._stop_here()
        return aligned

    def _evaluate(self, images: ImageSet) -> TaskResult:
        self.observer.phase_started("evaluation", images.num_images)
        with self._phase("evaluation"):
            features, labels = extract_features(self.backbone, images, self.precision, self.observer.advanced)
            return evaluate(self.aligned, features, labels, self.plan)

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
        if self.should_stop():
            # All epochs are done, so the optimizer has served; the phases after stage 1 are quick to repeat.
            self._save(self.position, None)
            raise Interrupted(self.folder.path)

    def _save(self, position: Position, optimizer: torch.optim.Optimizer | None) -> None:
        self.position = position
        state = {
            "position": dataclasses.asdict(position),
            "preset": self.preset,
            "config": config_to_dict(self.config),
            "data_sha256": self.data_hash,
            "class_names": list(self.dataset.class_names),
            "class_order": list(self.plan.class_order),
            "task_sizes": list(self.plan.sizes),
            "results": [result.as_dict() for result in self.results],
            "seconds": self.seconds,
            "total_seconds": self._total_seconds(),
            "trained_images": self.trained_images,
            "metrics_bytes": self.folder.metrics_bytes,
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

    def _restore(self) -> None:
        for tensors, state in self.folder.newest(self.observer.message):
            refuse_changes(state, self.config, self.data_hash)
            self.position = Position(**state["position"])
            for task in range(self.position.task if self.config.align.epochs > 0 else 0):
                measured = ClassGaussians.load(self.folder.statistics(task), self.device)
                # Factored task by task, as the first time, so that the factors are the same to the last bit.
                measured.factorize()
                self.gaussians = self.gaussians.extended(measured)
            self.aligned = restore_model(tensors, self.backbone, self.classifier, self.plan, self.device)
            self.optimizer_state = tensors.get("optimizer")
            self.seconds, self.trained_images = state["seconds"], state["trained_images"]
            self.earlier_seconds = state["total_seconds"]
            self.results = [TaskResult.from_dict(result) for result in state["results"]]
            self.folder.rewind_metrics(state["metrics_bytes"])
            self.observer.message(
                f"resuming at task {self.position.task + 1}, epoch {self.position.epoch + 1}, "
                f"step {self.position.step + 1}"
            )
            return
        refuse_changes({"config": self.folder.config()}, self.config, self.data_hash)
        self.folder.rewind_metrics(0)
        self._begin_folder()
        self.observer.message("no checkpoint yet: starting from the first task")

    def _total_seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.began

    def _write_summary(self, status: str) -> dict[str, Any]:
        config, train_seconds = self.config, self.seconds["stage1"] + self.seconds["compile"]
        weights = {
            **{f"backbone.{k}": v for k, v in self.backbone.state_dict().items()},
            **{f"heads.{k}": v for k, v in self.classifier.state_dict().items()},
            **{f"gaussians.{k}": v for k, v in self.gaussians.state_tensors().items()},
        }
        ops = automatic_backends(self.device)
        backends = {
            "data": self.stream.backend,
            "optimizer": optimizer_backend(config.optim.name, self.device),
            "attention": self.backbone.attention.name,
            "last block": "class token" if self.backbone.plain_reason is None else "all tokens",
            "compile": "torch.compile" if self.compiled else "off",
            **{name: backend for name, (backend, _) in ops.items()},
        }
        facts = {
            "preset": self.preset,
            "method": method_of(self.preset),
            "status": status,
            "seed": config.seed,
            "task_sizes": list(self.plan.sizes[: len(self.results)]),
            "class_order": list(self.plan.class_order),
            "class_names": list(self.dataset.class_names),
            "phase_seconds": self.seconds,
            "total_seconds": self._total_seconds(),
            "train_images_per_second": self.trained_images / train_seconds if train_seconds else 0.0,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "backends": backends,
            "backend_reasons": {
                "data": self.stream.reason,
                "attention": self.backbone.attention.reason,
                "last block": self.backbone.plain_reason or "exact; the model reads only its class token",
                "compile": "asked for" if config.runtime.compile is not None else "on for CUDA, off on the CPU",
                **{name: why for name, (_, why) in ops.items()},
            },
            "versions": versions(),
            "device": device_description(self.device),
            "cpu_threads": torch.get_num_threads(),
            "precision": self.precision,
            "weights_sha256": weights_sha256(weights),
            "data_sha256": self.data_hash,
            "data_problems": {"quarantined": len(self.dataset.problems), "notes": self.dataset.notes},
        }
        return write_results(self.folder.path, self.results, facts)
