"""A finished (or running) run read back from its folder, for evaluation, prediction and export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slca_fast.config import Config
from slca_fast.config_file import config_from_dict, config_to_dict
from slca_fast.data.images import BadImage, allow_megapixels, decode_rgb
from slca_fast.data.pillow import render
from slca_fast.data.plan import test_plan
from slca_fast.errors import DataError, UserError
from slca_fast.machine.environment import pick_device, pick_precision
from slca_fast.machine.float32 import fast_float32_products
from slca_fast.methods.base import TaskClassifier
from slca_fast.methods.table import method_class
from slca_fast.model.backbone import Backbone, autocast
from slca_fast.model.build import build_backbone
from slca_fast.model.fast_path import choose
from slca_fast.runs.folder import is_finished_task, positions, run_config, state_of
from slca_fast.runs.learned import Learned, TensorGroups, classifier_of, load_frozen
from slca_fast.runs.resume import first_change
from slca_fast.runs.snapshot import BadSnapshot, newest_valid
from slca_fast.runs.state import RunState
from slca_fast.tasks import TaskPlan, plan_tasks
from slca_fast.training.evaluation import class_scores


@dataclass(frozen=True)
class TrainedModel:
    """What a run has learnt by its newest finished task."""

    config: Config
    plan: TaskPlan
    class_names: tuple[str, ...]
    """Sorted, as in the data set; class ids are positions in it."""
    domain_names: tuple[str, ...] | None
    """One for every task in domain-incremental learning, else empty; None where an old run did not say."""
    data_sha256: str | None
    """Of the images that the run was trained and tested on."""
    backbone: Backbone
    classifier: TaskClassifier
    device: torch.device
    precision: str

    @property
    def num_tasks_done(self) -> int:
        return len(self.classifier.task_sizes)

    def scores(self, images: Tensor) -> Tensor:
        """Class scores ``[N, seen classes]`` (class positions in the class order) of normalised images."""
        with torch.no_grad(), autocast(self.precision, self.device), fast_float32_products(self.device):
            features = self.backbone(images.to(self.device)).float()
        return class_scores(self.classifier.scores(features), self.plan)

    def name_of(self, position: int) -> str:
        """Class name of a position in the class order."""
        return self.class_names[self.plan.class_order[position]]


def load_run(run: Path, device: str = "auto", report: Callable[[str], None] = lambda problem: None) -> TrainedModel:
    """The newest finished task of run folder ``run``; ``report`` is told of checkpoints that are passed over.

    Raises UserError when there is none that can be trusted.
    """
    config = run_config(run)
    problems: list[str] = []
    finished = [position for position in positions(run / "checkpoints") if is_finished_task(position)]
    for path, tensors, values in newest_valid(finished, problems.append):
        try:
            found = _trained(run, config, tensors, state_of(path, values), pick_device(device))
        except BadSnapshot as problem:
            problems.append(f"checkpoint ignored: {path}: {problem}")
            continue
        for line in problems:
            report(line)
        return found
    reason = f" ({problems[0]})" if problems else ""
    raise UserError(f"{run} has no finished task yet{reason}")


def _trained(run: Path, config: Config, tensors: TensorGroups, state: RunState, device: torch.device) -> TrainedModel:
    _require_config(run, config, state)
    plan = _plan(config, state)
    backbone = _bare_backbone(config)
    load_frozen(backbone, run / "checkpoints" / "frozen", elsewhere=tensors.get("backbone", {}))
    learned = Learned(backbone, method_class(config.method)(config, backbone.feature_dim))
    learned.restore(tensors, state.task_sizes, torch.device("cpu"))
    learned.require_tasks(state.position.task, (state.position.task,))
    classifier = classifier_of(learned.method, tensors, state.task_sizes, device)
    if classifier is None or len(classifier.task_sizes) != state.position.task:
        raise BadSnapshot("it holds no classifier of all its tasks")
    precision = pick_precision(config.runtime.precision, device)
    backbone = backbone.to(device).eval()
    batch_size = config.optim.batch_size
    execution = choose(backbone.vit, device, precision, batch_size, compiled=False, attention=config.runtime.attention)
    backbone.use(execution)
    names = state.class_names, state.domain_names, state.data_sha256
    return TrainedModel(config, plan, *names, backbone, classifier, device, precision)


def _require_config(run: Path, config: Config, state: RunState) -> None:
    """Raises BadSnapshot unless the checkpoint was made with the configuration in the run's folder."""
    try:
        made_with = config_from_dict(state.config)
    except UserError as error:
        raise BadSnapshot(f"state.json: config: {error}") from error
    if (change := first_change(config_to_dict(made_with), config_to_dict(config))) is not None:
        key, old, now = change
        raise BadSnapshot(f"{run / 'config.yaml'}: {key} is {now}, the checkpoint was made with {old}")


def _plan(config: Config, state: RunState) -> TaskPlan:
    """The stream of the run; raises BadSnapshot unless the state's classes and tasks are those of its configuration."""
    sizes = state.task_sizes
    try:
        plan = plan_tasks(
            len(state.class_names), config.seed, num_domains=len(sizes), **dataclasses.asdict(config.tasks)
        )
    except UserError as error:
        raise BadSnapshot(f"state.json: {error}") from error
    if (plan.class_order, plan.sizes) != (state.class_order, sizes):
        raise BadSnapshot("state.json: its class_order or task_sizes are not those of its configuration")
    return plan


def _bare_backbone(config: Config) -> Backbone:
    # All weights come from the run's own checkpoints: nothing is downloaded or read from the original file.
    return build_backbone(replace(config.model, pretrained=False, checkpoint=None), config.data.image_size, config.seed)


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(model: TrainedModel, paths: list[Path], top_k: int = 5) -> Iterator[Prediction]:
    """The ``top_k`` classes of every image file, with softmax probabilities over the seen classes, in order.

    Raises DataError naming a file that cannot be decoded.
    """
    data, size = model.config.data, model.config.optim.batch_size
    allow_megapixels(data.max_megapixels)
    for start in range(0, len(paths), size):
        chunk = paths[start : start + size]
        images = []
        for path in chunk:
            try:
                image = decode_rgb(path, data.exif_orientation)
            except BadImage as error:
                raise DataError(f"{path}: {error}") from error
            plan = test_plan(data.recipe, data.image_size, np.array([image.height]), np.array([image.width]))
            images.append(_normalised(np.asarray(render(image, plan, 0)), data.mean, data.std))
        scores_NC = model.scores(torch.stack(images))
        top = scores_NC.softmax(1).topk(min(top_k, scores_NC.shape[1]), dim=1)
        for path, probabilities, positions_K in zip(chunk, top.values.tolist(), top.indices.tolist()):
            yield Prediction(str(path), tuple(model.name_of(p) for p in positions_K), tuple(probabilities))


def _normalised(image_HWC: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    scaled = image_HWC.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    shape = (3, 1, 1)
    mean_C11, std_C11 = (np.array(values, dtype=np.float32).reshape(shape) for values in (mean, std))
    return torch.from_numpy((scaled - mean_C11) / std_C11)
