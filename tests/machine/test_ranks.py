"""Promise 5 and the rules of several ranks: same order, crops and statistics; nearly the same training."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from crash import processes, wait
from helpers import TINY_ARGS, tiny_config, write_images
from PIL import Image

from slca_fast.data.index import load_dataset
from slca_fast.data.stream import Stream
from slca_fast.machine.ranks import Ranks, Votes
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.build import build_backbone
from slca_fast.runs.folder import positions
from slca_fast.runs.snapshot import read_snapshot
from slca_fast.tasks import plan_tasks
from slca_fast.training.features import extract_features

SIZES = ("--tasks.sizes", "[2,2]")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    # 13 images a class: neither batches of 8 nor ranks divide a task evenly.
    return write_images(tmp_path_factory.mktemp("images"), per_class=13)


@pytest.fixture
def stream(images, tmp_path):
    config = tiny_config(images, tmp_path / "run", *SIZES)
    dataset = load_dataset(config.data)
    plan = plan_tasks(4, config.seed, sizes=[2, 2])
    opened = Stream(dataset, plan, config.data, config.optim.batch_size, torch.device("cpu"))
    yield config, opened
    opened.close()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_order_and_pixels_do_not_depend_on_the_number_of_ranks(stream, size: int) -> None:
    config, opened = stream
    images = opened.train(1)
    parts = images.epoch_batches(config.seed, 1, 2)
    assert [len(ids) for ids in parts] == [8, 8, 8, 2]
    alone = list(images.train_batches(config.seed, 1, 2, parts))
    shares = [
        list(images.train_batches(config.seed, 1, 2, [Ranks(rank, size).slice_of(ids) for ids in parts]))
        for rank in range(size)
    ]
    for step, whole in enumerate(alone):
        rows = [share[step] for share in shares if share[step] is not None]
        assert torch.equal(torch.cat([batch.images for batch in rows]), whole.images)
        assert torch.equal(torch.cat([batch.sample_id_B for batch in rows]), whole.sample_id_B)
    # The ragged batch of 2 leaves nothing for some of 3 or 4 ranks, and they know it.
    assert sum(share[-1] is None for share in shares) == max(0, size - 2)


class Threads:
    """Ranks that are threads of this process: ``gather_chunks`` and ``any`` over a barrier instead of a network."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.slots = size, threading.Barrier(size), [None] * size

    def rank(self, number: int) -> Ranks:
        shared = self

        class Rank(Ranks):
            def gather_json(self, value):
                shared.slots[self.rank] = value
                shared.barrier.wait()
                everyone = list(shared.slots)
                shared.barrier.wait()
                return everyone

            def any(self, flag):
                return any(self.gather_json(flag))

            def gather_chunks(self, chunks, num_chunks):
                everyone = self.gather_json(list(chunks))
                return [everyone[n % self.size][n // self.size] for n in range(num_chunks)]

        return Rank(number, self.size)


def statistics_of(features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    gaussians = ClassGaussians(features.shape[1])
    gaussians.update(features, labels)
    return gaussians.state_tensors()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_class_statistics_are_the_same_bits_on_any_number_of_ranks(stream, size: int) -> None:
    config, opened = stream
    images = dataclasses.replace(opened.train(0), batch_size=4)
    backbone = build_backbone(config.model, config.data.image_size, config.seed)
    features, labels = extract_features(backbone, images, "fp32")
    expected = statistics_of(features, labels)
    threads, found = Threads(size), [None] * size

    def work(number: int) -> None:
        ranks = threads.rank(number)
        found[number] = (
            statistics_of(*extract_features(backbone, images, "fp32", ranks=ranks)),
            extract_features(backbone, images, "fp32", ranks=ranks)[0],
        )

    workers = [threading.Thread(target=work, args=(number,)) for number in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    for statistics, own_features in found:
        assert torch.equal(own_features, features), "every image once, in order"
        assert statistics.keys() == expected.keys()
        assert all(torch.equal(statistics[name], expected[name]) for name in expected)


def test_votes_are_read_one_step_late_but_all_at_the_end() -> None:
    votes = Votes()
    votes.cast(torch.tensor(1.0))
    assert not votes.passed() and votes.passed(last=True) and not votes.passed(last=True)
    votes.cast(torch.tensor(0.0))
    votes.cast(torch.tensor(0.0))
    assert not votes.passed(last=True)


def weights(output: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_snapshot(positions(output / "checkpoints")[-1])
    return {f"{group}.{name}": t for group in ("backbone", "heads") for name, t in tensors[group].items()}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["demo", "demo-slca"])
def test_two_and_three_ranks_train_as_one_does(images, tmp_path, preset: str) -> None:
    # One task: afterwards rounding may send trajectories apart.
    extra = ("--tasks.sizes", "[4]", "--runtime.precision", "fp32")
    for size in (1, 2, 3):
        config = tiny_config(images, tmp_path / str(size), *extra, preset=preset)
        started = processes(config, tmp_path, size=size)
        assert wait(started) == [0] * size, started[0].log.read_text()
    alone = weights(tmp_path / "1")
    summary = json.loads((tmp_path / "1/summary.json").read_text())
    for size in (2, 3):
        several = weights(tmp_path / str(size))
        for name, tensor in alone.items():
            relative = (several[name] - tensor).norm() / tensor.norm().clamp(min=1e-6)
            assert relative < 1e-5, (size, name, float(relative))
        other = json.loads((tmp_path / str(size) / "summary.json").read_text())
        assert other["num_ranks"] == size and other["exchange_seconds"] > 0
        assert other["accuracy_matrix"] == summary["accuracy_matrix"]
        events = [json.loads(line) for line in (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()]
        assert [e["event"] for e in events].count("epoch") == 2, "only rank 0 writes"


def torchrun(size: int, *args: str, max_restarts: int = 0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size),
         "--max-restarts", str(max_restarts), "-m", "slca_fast", "train", "demo", *TINY_ARGS, *SIZES, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_sigterm_to_torchrun_leaves_a_checkpoint_that_one_rank_continues(images, tmp_path) -> None:
    run = tmp_path / "run"
    args = ("--data.root", str(images), "--output", str(run), "--optim.epochs", "400")
    process = torchrun(2, *args)
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() or '"epoch"' not in (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - asked < 30 and process.returncode != 0
    assert error.count("stopping after this batch") == 1 and error.count("continue with: slca-fast train") == 1
    newest = positions(run / "checkpoints")[-1]
    _, state = read_snapshot(newest)
    assert state["num_ranks"] == 2
    # Another number of ranks may go on: it is no part of the configuration.
    config = tiny_config(images, run, *SIZES, "--optim.epochs", "400")
    asked_at: list[int] = []

    def stop_soon() -> bool:
        asked_at.append(1)
        return len(asked_at) > 3

    from slca_fast.experiment import Interrupted
    from slca_fast.experiment import run as run_experiment

    with pytest.raises(Interrupted):
        run_experiment(config, preset="demo", resume=True, should_stop=stop_soon)
    assert positions(run / "checkpoints")[-1] > newest


@pytest.mark.slow
def test_a_failing_rank_stops_all_in_seconds_and_says_which_and_why(images, tmp_path) -> None:
    # Its header is fine and its pixels are not: only the rank that decodes it finds out.
    bad = images / "train" / "class0" / "000.png"
    content = bad.read_bytes()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(bad)
    whole = bad.read_bytes()
    middle = len(whole) // 2
    bad.write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :])
    try:
        process = torchrun(2, "--data.root", str(images), "--output", str(tmp_path / "run"))
        began = time.monotonic()
        _, error = process.communicate(timeout=120)
        assert process.returncode != 0 and time.monotonic() - began < 100
    finally:
        bad.write_bytes(content)
    lines = [line for line in error.splitlines() if line.startswith("slca-fast: error:")]
    assert sum("class0/000.png" in line for line in lines) == 1, error
    assert all(line.startswith("slca-fast: error: rank ") for line in lines)
    assert "Traceback" not in error.split("slca-fast: error:")[0]


@pytest.mark.slow
def test_a_killed_rank_is_restarted_by_torchrun_and_the_result_is_the_undisturbed_one(images, tmp_path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    args = ("--data.root", str(images), "--optim.epochs", "30")
    process = torchrun(2, *args, "--output", str(whole))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    process = torchrun(2, *args, "--output", str(broken), max_restarts=1)
    deadline = time.monotonic() + 200
    while not (broken / "metrics.jsonl").exists() or '"epoch"' not in (broken / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children, "torchrun has no worker to kill"
    os.kill(int(children[-1]), signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    before, after = (json.loads((run / "summary.json").read_text()) for run in (whole, broken))
    assert after["status"] == "complete" and after["weights_sha256"] == before["weights_sha256"]
    assert after["accuracy_matrix"] == before["accuracy_matrix"]
