"""Promises 2, 3 and 10: a failing disk, a flipped bit and a NaN never cost more than the interval they strike."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY_ARGS, tiny_config, write_images
from PIL import Image

from slca_fast import files
from slca_fast.cli import main
from slca_fast.errors import UserError
from slca_fast.experiment import run
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.backbone import Backbone
from slca_fast.runs.folder import RunFolder, positions
from slca_fast.runs.observer import Observer
from slca_fast.runs.snapshot import BadSnapshot, read_snapshot
from slca_fast.runs.state import Position, RunState
from slca_fast.training.features import NonFiniteFeatures
from slca_fast.training.stage1 import NonFiniteLoss

SIZES = ("--tasks.sizes", "[2,2]")
EVERY_FAULT = os.environ.get("SLCA_FAST_TEST_EVERY_FAULT") == "1"


class FaultyOs:
    """The module ``os`` as files.py sees it: the n-th write, fsync or rename fails, and with ``lasting`` all after."""

    def __init__(self, fail_at: int, error: int, lasting: bool = False) -> None:
        self.fail_at, self.error, self.lasting, self.count = fail_at, error, lasting, 0

    def __getattr__(self, name: str):
        return getattr(os, name)

    def _count(self) -> None:
        self.count += 1
        if self.count == self.fail_at or (self.lasting and self.count > self.fail_at):
            raise OSError(self.error, os.strerror(self.error))

    def write(self, descriptor: int, data) -> int:
        try:
            self._count()
        except OSError:
            # A full disk takes what fits.
            os.write(descriptor, data[: len(data) // 2])
            raise
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._count()
        os.fsync(descriptor)

    def rename(self, source, target) -> None:
        self._count()
        os.rename(source, target)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, run(tiny_config(images, output, *SIZES, "--checkpoint.keep", "3"), preset="demo")


class Memory:
    """A method's memory of a few numbers."""

    def __init__(self) -> None:
        self.gaussians = ClassGaussians(3)
        self.gaussians.update(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 4))

    def save(self, task: int, path: Path) -> None:
        self.gaussians.save(path)

    def load(self, task: int, path: Path, device: torch.device) -> None:
        self.gaussians = ClassGaussians.load(path, device)


def state(number: int) -> RunState:
    """Of a run whose ``number`` tasks are done."""
    sizes = dict(class_names=(), class_order=(), task_sizes=())
    names = dict(preset="demo", config={"method": "slca"}, data_sha256=None, frozen_sha256=None, num_ranks=1)
    said = dict(clock={}, metrics_bytes=0, attention=None, blocks=None)
    return RunState(position=Position(number), **sizes, **names, **said)


def save(folder: RunFolder, number: int) -> None:
    tensors = {"backbone": {"w": torch.full((4,), float(number))}, "heads": {}}
    folder.save_position(state(number), tensors, keep=2)


@pytest.mark.slow
@pytest.mark.parametrize("error, lasting", [(errno.EIO, False), (errno.ENOSPC, True)])
def test_a_failure_at_every_file_operation_loses_one_checkpoint_at_most(tmp_path, monkeypatch, error, lasting) -> None:
    memory = Memory()
    counted = FaultyOs(0, error)
    for fail_at in range(10_000):
        root = tmp_path / str(fail_at)
        faulty = FaultyOs(fail_at, error, lasting)
        monkeypatch.setattr(files, "os", faulty if fail_at else counted)
        folder, saved = RunFolder(root, resume=False), -1
        try:
            for number in range(4):
                folder.save_memory(number, memory)
                folder.log("epoch", loss=1.0)
                save(folder, number)
                saved = number
        except OSError as failure:
            assert failure.errno == error and failure.filename is not None
            assert not list(root.rglob(".*.new"))
        else:
            assert fail_at in (0, counted.count + 1)
        folder.close()
        monkeypatch.setattr(files, "os", os)
        again = RunFolder(root, resume=True)
        found = list(again.newest(lambda problem: pytest.fail(problem)))
        # What was being written may be there or not; what was written before is.
        newest = found[0][2]["position"]["task"] if found else -1
        assert newest in (saved, saved + 1)
        for task in range(saved + 1):
            assert again.load_memory(task, memory, torch.device("cpu"), pytest.fail)
        save(again, 9)
        again.close()
        shutil.rmtree(root)
        if fail_at > counted.count > 0:
            return
    raise AssertionError("unreachable")


@pytest.mark.slow
def test_a_disk_that_fills_or_fails_ends_a_run_in_one_line_and_the_run_goes_on(
    images, finished, tmp_path, monkeypatch, capsys
) -> None:
    # ``finished`` has remembered the index of the images, which a run does only once and may fail to do.
    args = ["train", "demo", *TINY_ARGS, *SIZES, "--data.root", str(images), "--output"]
    counter = FaultyOs(0, errno.EIO)
    monkeypatch.setattr(files, "os", counter)
    assert main([*args, str(tmp_path / "whole")]) == 0
    expected = json.loads((tmp_path / "whole/summary.json").read_text())
    rng = random.Random(3)
    chosen = range(1, counter.count + 1) if EVERY_FAULT else sorted(rng.sample(range(1, counter.count + 1), 12))
    for fail_at in chosen:
        error = rng.choice([errno.ENOSPC, errno.EIO])
        output = tmp_path / f"run{fail_at}"
        monkeypatch.setattr(files, "os", FaultyOs(fail_at, error))
        capsys.readouterr()
        assert main([*args, str(output)]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("slca-fast: error: ") and str(output) in line and os.strerror(error) in line
        assert "\n" not in line and "--resume" in line
        monkeypatch.setattr(files, "os", os)
        assert main([*args, str(output), "--resume"]) == 0
        summary = json.loads((output / "summary.json").read_text())
        assert summary["weights_sha256"] == expected["weights_sha256"], fail_at
        assert summary["accuracy_matrix"] == expected["accuracy_matrix"]


def flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_all_detected(finished, tmp_path) -> None:
    output, _ = finished
    rng, undetected = random.Random(11), []
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(output, tmp_path / "run")
    newest, previous = positions(checkpoints)[-1], positions(checkpoints)[-2]
    files_ = sorted([*newest.iterdir(), *checkpoints.glob("statistics-*"), *(checkpoints / "frozen").iterdir()])
    folder = RunFolder(tmp_path / "run", resume=True)
    for _ in range(1000):
        path = rng.choice(files_)
        before = path.read_bytes()
        flip_a_bit(path, rng)
        problems: list[str] = []
        if path.parent == newest:
            survived = next(folder.newest(problems.append))[0] == previous
        elif path.parent == checkpoints:
            with pytest.raises(ValueError, match="statistics-task"):
                ClassGaussians.load(path)
            # One file of a pair is damaged: the other serves.
            survived = folder.load_memory(int(path.name[16:19]), Memory(), torch.device("cpu"), problems.append)
            problems.append(path.name)
        else:
            with pytest.raises(BadSnapshot) as found:
                read_snapshot(path.parent)
            problems.append(str(found.value))
            survived = True
        if not survived or not any(path.name in p or path.parent.name in p for p in problems):
            undetected.append(path)
        path.write_bytes(before)
    folder.close()
    assert undetected == []


@pytest.mark.parametrize("victim", ["heads.safetensors", "state.json", "MANIFEST.json", "statistics", "both", "frozen"])
def test_resume_survives_damage_and_says_why(images, finished, tmp_path, victim: str) -> None:
    output, summary = finished
    shutil.copytree(output, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    rng = random.Random(5)
    if victim == "frozen":
        flip_a_bit(checkpoints / "frozen" / "backbone.safetensors", rng)
    elif victim in ("statistics", "both"):
        flip_a_bit(checkpoints / "statistics-task-001.safetensors", rng)
        if victim == "both":
            flip_a_bit(checkpoints / "statistics-task-001-copy.safetensors", rng)
    else:
        flip_a_bit(positions(checkpoints)[-1] / victim, rng)
    messages: list[str] = []
    observer = Observer()
    observer.message = messages.append
    config = tiny_config(images, tmp_path / "run", *SIZES, "--checkpoint.keep", "1")
    again = run(config, preset="demo", resume=True, observer=observer)
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert again["accuracy_matrix"] == summary["accuracy_matrix"]
    assert any("ignored" in message for message in messages), messages
    # keep 1: what stays is intact, and the damaged one is not what was kept.
    kept = positions(checkpoints)
    assert len(kept) == 1 or victim in ("statistics", "frozen")
    assert read_snapshot(kept[-1])


def test_resume_of_a_finished_run_returns_its_summary(images, finished) -> None:
    output, summary = finished
    before = (output / "summary.json").read_bytes()
    again = run(tiny_config(images, output, *SIZES), preset="demo", resume=True)
    assert again == json.loads(before) and again["weights_sha256"] == summary["weights_sha256"]
    assert (output / "summary.json").read_bytes() == before


def test_a_crash_before_anything_was_written_resumes_from_the_start(images, finished, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    again = run(tiny_config(images, tmp_path / "run", *SIZES), preset="demo", resume=True)
    assert again["weights_sha256"] == finished[1]["weights_sha256"]


def poison(monkeypatch, images: Path, when) -> None:
    """Makes features NaN for the image ``class0/003.png`` of a split whenever ``when(backbone)`` says so."""
    target = np.array(Image.open(images / "train/class0/003.png"))
    whole = Backbone.forward

    def forward(self, pixels):
        features = whole(self, pixels)
        if not when(self):
            return features
        mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
        std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
        plain = ((pixels * std + mean) * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
        bad = (plain == torch.from_numpy(target)).all(3).all(2).all(1)
        return torch.where(bad[:, None], torch.full_like(features, float("nan")), features)

    monkeypatch.setattr(Backbone, "forward", forward)


def test_nan_features_of_one_image_stop_the_run_with_its_name(images, finished, tmp_path, monkeypatch) -> None:
    config = tiny_config(images, tmp_path / "run", *SIZES, "--data.recipe", "none")
    poison(monkeypatch, images, lambda backbone: not backbone.training)
    with pytest.raises(NonFiniteFeatures, match=r"1 of \d+ images are NaN or infinite.*class0/003\.png$"):
        run(config, preset="demo")


@pytest.mark.parametrize("preset", ["demo", "demo-slca"])
def test_a_nan_in_training_stops_the_run_with_the_batch_named_and_keeps_the_checkpoint(
    images, tmp_path, monkeypatch, preset
) -> None:
    output = tmp_path / "run"
    config = tiny_config(images, output, *SIZES, "--optim.epochs", "3", preset=preset)
    epochs = []
    whole = Backbone.forward

    def forward(self, pixels):
        if self.training:
            epochs.append(1)
            if len(epochs) == 4:
                with torch.no_grad():
                    next(p for p in self.parameters() if p.requires_grad).view(-1)[0] = float("nan")
        return whole(self, pixels)

    monkeypatch.setattr(Backbone, "forward", forward)
    with pytest.raises(NonFiniteLoss, match=r"in task 1; the images of that batch: .*class\d/\d+\.png"):
        run(config, preset=preset)
    for path in positions(output / "checkpoints"):
        tensors, _ = read_snapshot(path)
        assert all(t.isfinite().all() for group in tensors.values() for t in group.values())
    monkeypatch.setattr(Backbone, "forward", whole)
    assert run(config, preset=preset, resume=True)["status"] == "complete"


def test_out_of_memory_is_advice_in_training_and_smaller_chunks_in_a_pass(
    images, finished, tmp_path, monkeypatch
) -> None:
    whole, seen = Backbone.forward, []

    def forward(self, pixels):
        if len(pixels) > 5 and not self.training:
            raise torch.OutOfMemoryError("made up")
        seen.append(len(pixels))
        return whole(self, pixels)

    monkeypatch.setattr(Backbone, "forward", forward)
    again = run(tiny_config(images, tmp_path / "halved", *SIZES), preset="demo")
    assert again["accuracy_curve"] == finished[1]["accuracy_curve"] and 4 in seen

    def fails(self, pixels):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(Backbone, "forward", fails)
    advice = "out of memory in stage 1.*--optim.batch_size.*--data.cache.*--runtime.precision"
    with pytest.raises(UserError, match=advice):
        run(tiny_config(images, tmp_path / "run", *SIZES), preset="demo")
