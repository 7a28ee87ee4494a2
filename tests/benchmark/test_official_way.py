"""The benchmark's baseline computes what the pipeline computes: same losses, statistics and alignment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import tiny_config, write_images

from slca_fast.benchmark import official_way
from slca_fast.data.index import load_dataset
from slca_fast.data.stream import Stream
from slca_fast.errors import UserError
from slca_fast.machine.environment import pick_device
from slca_fast.methods.alignment import align_classifier
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.build import build_backbone
from slca_fast.model.head import Classifier
from slca_fast.training.features import extract_features
from slca_fast.training.stage1 import Stage1

CPU = torch.device("cpu")


class Setting:
    """One tiny run, seen by both ways."""

    def __init__(self, images: Path, preset: str) -> None:
        config = tiny_config(images, Path("unused"), "--tasks.sizes", "[2,1,1]", preset=preset)
        self.config = dataclasses.replace(config, data=dataclasses.replace(config.data, recipe="imagenet-r"))
        dataset = load_dataset(self.config.data)
        self.plan = official_way.plan_of(self.config, len(dataset.class_names))
        self.stream = Stream(dataset, self.plan, self.config.data, self.config.optim.batch_size, CPU)
        self.dataset = dataset
        self.backbone = build_backbone(self.config.model, self.config.data.image_size, self.config.seed)
        self.classifier = Classifier(self.backbone.feature_dim)
        self.official = official_way.OfficialLearner(self.config, self.plan, CPU)

    def train(self, task: int) -> tuple[list[float], list[float]]:
        """Losses by epoch of ours and of the official way, on the same batches."""
        head = self.classifier.grow(self.plan.sizes[task], self.config.seed, CPU)
        images = self.stream.train(task)
        stage1 = Stage1(self.backbone, head, images, self.config, task, self.plan.offsets[task], "fp32")
        self.official.begin_task(task)
        ours, theirs = [], []
        for epoch in range(self.config.optim.epochs):
            parts = images.epoch_batches(self.config.seed, task, epoch)
            batches = list(images.train_batches(self.config.seed, task, epoch, parts))
            ours.append(stage1.run_epoch(epoch).loss)
            losses = self.official.train_epoch([(b.sample_id_B, b.images, b.label_B) for b in batches], task)
            total = sum(loss * len(b.label_B) for loss, b in zip(losses, batches))
            theirs.append(total / images.num_images)
        return ours, theirs


@pytest.fixture(scope="module", params=["demo-slca", "demo"])
def setting(request, tmp_path_factory) -> Setting:
    return Setting(write_images(tmp_path_factory.mktemp("images")), request.param)


def test_losses_statistics_and_alignment_are_the_pipelines(setting: Setting) -> None:
    gaussians = ClassGaussians(setting.backbone.feature_dim, ridge=setting.config.align.ridge)
    for task in range(2):
        ours, theirs = setting.train(task)
        assert ours == pytest.approx(theirs, rel=2e-5)
        images = setting.stream.train(task)
        gaussians.update(*extract_features(setting.backbone, images, "fp32"))
        for label in range(setting.plan.offsets[task], setting.plan.offsets[task + 1]):
            batches = [(b.sample_id_B, b.images, b.label_B) for b in images.test_batches()]
            setting.official.measure_class([(i, x[y == label], y[y == label]) for i, x, y in batches])
    dim = setting.backbone.feature_dim
    for label in range(setting.plan.offsets[2]):
        ridge = setting.config.align.ridge * torch.eye(dim)
        torch.testing.assert_close(
            gaussians.covariance(label).float() + ridge, setting.official.covariances[label], rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(gaussians.means[label], setting.official.means[label], rtol=1e-4, atol=1e-5)
    _alignment_is_the_pipelines(setting, task=1)


def _alignment_is_the_pipelines(setting: Setting, task: int) -> None:
    """Both ways on the same sampled features (drawn by the official way)."""
    config, official = setting.config, setting.official
    torch.manual_seed(0)
    drawn = [official.sample_epoch(task) for _ in range(config.align.epochs)]
    heads, optimizer = official.begin_alignment()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.align.epochs)
    theirs = []
    for features, labels in drawn:
        theirs.append(official.align_epoch(heads, optimizer, features, labels, task))
        scheduler.step()

    upcoming = iter(drawn)

    class Drawn(ClassGaussians):
        """Hands out the official way's samples in their shuffled order."""

        counts = property(lambda self: torch.ones(setting.plan.offsets[task + 1]))

        def sample(self, *args, **kwargs):
            return next(upcoming)

    real_randperm, ours = torch.randperm, []
    linear = official.heads.linear()
    try:
        torch.randperm = lambda n, **kwargs: torch.arange(n)
        weight, bias = align_classifier(
            linear.weight_CD,
            linear.bias_C,
            Drawn(linear.weight_CD.shape[1]),
            setting.plan.sizes[: task + 1],
            epochs=config.align.epochs,
            samples_per_class=config.align.samples_per_class,
            lr=config.align.lr,
            momentum=config.align.momentum,
            weight_decay=config.optim.weight_decay,
            temperature=config.align.temperature,
            on_epoch=lambda epoch, loss: ours.append(loss),
        )
    finally:
        torch.randperm = real_randperm
    assert ours == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(weight, torch.cat([h.weight.detach() for h in heads]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, torch.cat([h.bias.detach() for h in heads]), rtol=1e-4, atol=1e-5)


def test_test_images_are_the_pipelines(setting: Setting) -> None:
    module = official_way
    images = setting.stream.seen_test(2)
    ours = torch.cat([batch.images for batch in images.test_batches()])
    transform = module.test_transform(setting.config)
    theirs = module.Images(setting.dataset.test, setting.plan, 0, setting.plan.offsets[3], transform)
    assert len(theirs) == len(ours)
    # torchvision rounds the resized image to uint8 before it crops; we crop within one resize.
    torch.testing.assert_close(torch.stack([x for _, x, _ in theirs]), ours, rtol=0, atol=1.01 / 255 / 0.224)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["demo-slca", "demo"])
def test_a_whole_official_run(tmp_path, preset: str) -> None:
    setting = Setting(write_images(tmp_path / "images"), preset)
    result = official_way.run_official(setting.config)
    assert len(result["accuracy_curve"]) == 3 and all(0 <= a <= 100 for a in result["accuracy_curve"])
    assert sum(result["phase_seconds"].values()) == pytest.approx(result["total_seconds"])


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_official_way_runs_on_the_device_that_ours_runs_on(setting: Setting, monkeypatch, device: str) -> None:
    class Made(Exception):
        pass

    def made(config, plan, device):
        raise Made(device)

    config = dataclasses.replace(
        setting.config, runtime=dataclasses.replace(setting.config.runtime, device=device), output="unused"
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(official_way, "OfficialLearner", made)
    with pytest.raises(Made) as official:
        official_way.run_official(config)
    assert official.value.args == (torch.device(device),) == (pick_device(config.runtime.device),)


def test_a_device_that_is_not_there_is_refused(setting: Setting) -> None:
    runtime = dataclasses.replace(setting.config.runtime, device="cuda:4711")
    with pytest.raises(UserError, match="cuda:4711"):
        official_way.run_official(dataclasses.replace(setting.config, runtime=runtime))
