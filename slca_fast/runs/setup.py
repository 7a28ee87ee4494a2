"""Everything that a run needs before its first step: data, plan, model and folder, and what a checkpoint restores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from slca_fast.config import Config
from slca_fast.config_file import config_to_dict, config_to_yaml
from slca_fast.data.index import ImageDataset, load_dataset
from slca_fast.data.layout import describe_cells
from slca_fast.data.share import share_of_machine
from slca_fast.data.stream import Stream
from slca_fast.errors import UserError
from slca_fast.files import replace_json, replace_text
from slca_fast.machine.environment import pick_device, pick_precision, require_room_for_threads
from slca_fast.machine.ranks import Ranks
from slca_fast.methods.table import method_class
from slca_fast.metrics import TaskResult
from slca_fast.model.build import build_backbone
from slca_fast.model.fast_path import Execution, Remembered, choose
from slca_fast.runs.clock import Clock
from slca_fast.runs.folder import RunFolder, state_of
from slca_fast.runs.learned import Learned, frozen_state, restore_frozen
from slca_fast.runs.observer import Observer
from slca_fast.runs.results import confusion_of
from slca_fast.runs.resume import data_sha256, refuse_changes
from slca_fast.runs.snapshot import BadSnapshot, read_snapshot, weights_sha256, write_snapshot
from slca_fast.runs.state import Position, RunState
from slca_fast.runs.tracking import open_trackers
from slca_fast.tasks import TaskPlan, plan_tasks


@dataclass
class Setup:
    """The values of one run that do not change while it goes on, and where it begins."""

    config: Config
    preset: str
    dataset: ImageDataset
    data_sha256: str
    plan: TaskPlan
    device: torch.device
    learned: Learned
    folder: RunFolder
    stream: Stream
    frozen_sha256: str
    execution: Execution = field(init=False)
    position: Position = field(default_factory=lambda: Position(0))
    results: tuple[TaskResult, ...] = ()
    optimizer_state: dict[str, Tensor] | None = None
    """Of a checkpoint within stage 1."""

    @property
    def problems(self) -> list[str]:
        """Everything wrong with the images, found at the start or when they were decoded."""
        found = [*self.dataset.problems, *self.stream.problems]
        return list(dict.fromkeys(str(problem) for problem in found))

    def close(self) -> None:
        """Gives back the data backends and the folder's lock."""
        self.stream.close()
        self.folder.close()


def set_up(config: Config, preset: str, resume: bool, observer: Observer, ranks: Ranks, clock: Clock) -> Setup:
    """The run of ``config``, begun anew or, to ``resume``, as its newest intact checkpoint has it.

    Raises UserError and DataError, before anything is written, for what cannot be used.
    """
    method = method_class(config.method)
    method.check(config)
    device = ranks.device(pick_device(config.runtime.device))
    clock.device = device
    if config.runtime.num_threads is not None:
        require_room_for_threads(config.runtime.num_threads)
        torch.set_num_threads(config.runtime.num_threads)
    with ranks.first_before_others():
        dataset = load_dataset(config.data, observer.indexing)
    for line in describe_cells(dataset.empty_cells):
        observer.message(f"note: {line}")
    data_hash = data_sha256(dataset)
    ranks.require_same("images", data_hash)
    plan = plan_tasks(
        len(dataset.class_names),
        config.seed,
        num_domains=len(dataset.train.domain_names) or 1,
        **dataclasses.asdict(config.tasks),
    )
    backbone = build_backbone(config.model, config.data.image_size, config.seed, observer.message).to(device)
    learned = Learned(backbone, method(config, backbone.feature_dim))
    learned.method.require_memory(plan.num_labels, device)
    settings = learned.method.settings
    output = config.output or f"runs/{preset}-seed{config.seed}"
    config = dataclasses.replace(
        config,
        output=output,
        method_settings={} if settings is None else dataclasses.asdict(settings),
    )
    frozen_hash = weights_sha256(frozen_state(backbone))
    if not ranks.alone:
        ranks.require_same("weights", weights_sha256(backbone.state_dict()))
    folder = RunFolder(Path(output), resume, owner=ranks.is_first)
    try:
        if ranks.is_first:
            folder.trackers = open_trackers(config.track, folder.path, config_to_dict(config))
        share = share_of_machine(config.data, ranks, device)
        stream = Stream(dataset, plan, share, config.optim.batch_size, device)
    except BaseException:
        folder.close()
        raise
    setup = Setup(config, preset, dataset, data_hash, plan, device, learned, folder, stream, frozen_hash)
    try:
        remembered = _restore(setup, observer, ranks, clock) if resume else _begin(setup, ranks)
        setup.execution = _choose_execution(setup, remembered, observer, ranks)
    except BaseException:
        setup.close()
        raise
    clock.set_up()
    return setup


def _begin(setup: Setup, ranks: Ranks) -> Remembered:
    if ranks.is_first:
        folder = setup.folder
        replace_text(folder.path / "config.yaml", config_to_yaml(setup.config, setup.preset))
        replace_json(folder.path / "problems.json", setup.problems)
        folder.results.replace(())
        write_snapshot(folder.frozen, {"backbone": frozen_state(setup.learned.backbone)}, {})
        folder.log("start", preset=setup.preset, seed=setup.config.seed, data_sha256=setup.data_sha256)
    return Remembered()


def _choose_execution(setup: Setup, remembered: Remembered, observer: Observer, ranks: Ranks) -> Execution:
    """Rank 0 chooses for all, once a checkpoint has said what the run began with."""
    runtime, batch_size = setup.config.runtime, setup.config.optim.batch_size
    backbone, num_images = setup.learned.backbone, -(-batch_size // ranks.size)
    chosen = ranks.from_first(
        lambda: choose(
            backbone.vit,
            setup.device,
            pick_precision(runtime.precision, setup.device),
            num_images,
            compiled=runtime.compile,
            attention=runtime.attention,
            remembered=remembered,
        ).to_dict()
    )
    execution = Execution.from_dict(chosen)
    backbone.use(execution, num_training=num_images, num_evaluation=batch_size)
    if ranks.is_first and (missing := remembered.missing_in(execution)):
        observer.message(missing)
    return execution


def _restore(setup: Setup, observer: Observer, ranks: Ranks, clock: Clock) -> Remembered:
    """Continues from the newest checkpoint that is intact with everything it needs, else from the start."""
    found: list[RunState] = []

    def newest() -> str | None:
        for path, tensors, values in setup.folder.newest(observer.message):
            try:
                state = state_of(path, values)
                _restore_from(setup, tensors, state, clock, observer.message)
                found.append(state)
            except BadSnapshot as problem:
                observer.message(f"checkpoint ignored: {path}: {problem}")
                continue
            setup.folder.set_aside_after(path)
            setup.folder.rewind_metrics(found[-1].metrics_bytes)
            setup.folder.results.replace(setup.results)
            at = setup.position
            observer.message(f"resuming at task {at.task + 1}, epoch {at.epoch + 1}, step {at.step + 1}")
            return path.name
        before = setup.folder.config()
        if before is not None:
            refuse_changes(before, None, setup.config, setup.data_sha256)
        # What was tried may have left some of its weights.
        model, size, seed = setup.config.model, setup.config.data.image_size, setup.config.seed
        setup.learned.backbone.load_state_dict(build_backbone(model, size, seed).state_dict())
        setup.frozen_sha256 = weights_sha256(frozen_state(setup.learned.backbone))
        setup.folder.start_over()
        _begin(setup, ranks)
        observer.message("no checkpoint to continue from: starting from the first task")
        return None

    name = ranks.from_first(newest)
    if not ranks.is_first and name is not None:
        path = setup.folder.checkpoints / name
        try:
            tensors, values = read_snapshot(path)
            found.append(state_of(path, values))
            _restore_from(setup, tensors, found[-1], clock, lambda problem: None)
        except BadSnapshot as problem:
            raise UserError(f"{path}, which rank 0 read, cannot be read here: {problem}") from problem
    return Remembered(found[-1].attention, found[-1].blocks) if found else Remembered()


def _restore_from(
    setup: Setup,
    tensors: dict[str, dict[str, Tensor]],
    state: RunState,
    clock: Clock,
    report: Callable[[str], None],
) -> None:
    """Raises BadSnapshot, with nothing but weights changed, when the checkpoint cannot be continued from."""
    learned, plan = setup.learned, setup.plan
    refuse_changes(state.config, state.data_sha256, setup.config, setup.data_sha256)
    if (state.class_names, state.class_order, state.task_sizes) != (
        setup.dataset.class_names,
        plan.class_order,
        plan.sizes,
    ):
        raise BadSnapshot("its classes or tasks are not those of the configuration")
    results = setup.folder.results.read(state.position.task) if state.results is None else state.results
    if results and "confusion" in tensors:
        confusion = confusion_of(tensors["confusion"], len(state.class_names))
        results = (*results[:-1], dataclasses.replace(results[-1], confusion=confusion))
    method = type(learned.method)(setup.config, learned.backbone.feature_dim)
    for task in range(state.position.task if method.remembers else 0):
        if not setup.folder.load_memory(task, method, setup.device, report):
            raise BadSnapshot(f"the class statistics of task {task + 1} are lost")
    setup.frozen_sha256 = restore_frozen(learned.backbone, setup.folder.frozen, state.frozen_sha256, report)
    restored = Learned(learned.backbone, method)
    restored.restore(tensors, setup.plan.sizes, setup.device)
    at = state.position
    restored.require_tasks(at.task, (at.task, at.task + 1) if at.begins_task else (at.task + 1,))
    optimizer = tensors.get("optimizer")
    if optimizer is not None:
        restored.check_optimizer(setup.config.optim.name, optimizer)
    clock.go_on_from(state.clock)
    setup.learned, setup.position, setup.results = restored, state.position, results
    setup.optimizer_state = optimizer
