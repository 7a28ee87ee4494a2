"""Whole runs: determinism, unequal tasks, every method, resume, the run folder."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_config, write_images

from slca_fast.errors import UserError
from slca_fast.experiment import Interrupted, run
from slca_fast.methods.presets import PRESETS
from slca_fast.metrics import METRICS
from slca_fast.report.run_page import write_report
from slca_fast.runs.trained import load_run, predict

SIZES = ("--tasks.sizes", "[2,1,1]")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, run(tiny_config(images, output, *SIZES), preset="demo")


def test_summary_has_every_key_and_the_files_agree(finished) -> None:
    output, summary = finished
    on_disk = json.loads((output / "summary.json").read_text())
    assert on_disk["weights_sha256"] == summary["weights_sha256"]
    for key in (
        *(metric.name for metric in METRICS),
        "accuracy_curve",
        "accuracy_matrix",
        "seed",
        "phase_seconds",
        "backends",
        "versions",
        "device",
        "weights_sha256",
    ):
        assert key in on_disk, key
    assert set(on_disk["phase_seconds"]) >= {"stage1", "statistics", "alignment", "evaluation", "data", "compile"}
    assert on_disk["task_sizes"] == [2, 1, 1] and on_disk["status"] == "complete"
    rows = list(csv.reader((output / "accuracy_matrix.csv").open()))
    assert [float(v) for v in rows[3][1:]] == pytest.approx(on_disk["accuracy_matrix"][2], abs=1e-3)
    events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events].count("epoch") == 6 and [e["event"] for e in events].count("task") == 3
    assert write_report(output).read_text().startswith("<!doctype html>".upper()[:2])


def test_one_seed_gives_one_result_to_the_last_bit_and_another_seed_another(images, finished, tmp_path) -> None:
    _, first = finished
    again = run(tiny_config(images, tmp_path / "again", *SIZES), preset="demo")
    assert again["weights_sha256"] == first["weights_sha256"]
    assert again["accuracy_matrix"] == first["accuracy_matrix"]
    other = run(tiny_config(images, tmp_path / "other", *SIZES, "--seed", "1"), preset="demo")
    assert other["weights_sha256"] != first["weights_sha256"]


def test_a_run_does_not_depend_on_or_touch_the_global_generators(images, finished, tmp_path) -> None:
    _, first = finished
    torch.manual_seed(99)
    expected = torch.rand(2)
    torch.manual_seed(99)
    again = run(tiny_config(images, tmp_path / "again", *SIZES), preset="demo")
    assert again["weights_sha256"] == first["weights_sha256"]
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("stop_after", [0, 3, 7, 11, 14])
def test_a_stop_anywhere_then_resume_gives_the_same_weights(images, finished, tmp_path, stop_after: int) -> None:
    _, first = finished
    config, asked = tiny_config(images, tmp_path / "run", *SIZES), []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > stop_after

    with pytest.raises(Interrupted):
        run(config, preset="demo", should_stop=should_stop)
    resumed = run(config, preset="demo", resume=True)
    assert resumed["weights_sha256"] == first["weights_sha256"]
    assert resumed["accuracy_matrix"] == first["accuracy_matrix"]
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events].count("epoch") == 6
    finished_losses = [e["loss"] for e in events if e["event"] == "epoch"]
    unbroken = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert finished_losses == [e["loss"] for e in unbroken if e["event"] == "epoch"]


@pytest.mark.parametrize("preset", ["demo-seqft", "demo-slowft", "demo-probe", "demo-slca"])
def test_every_method_runs(images, tmp_path, preset: str) -> None:
    align_epochs = str(min(2, PRESETS[preset]().align.epochs))
    config = tiny_config(images, tmp_path / "run", *SIZES, "--align.epochs", align_epochs, preset=preset)
    summary = run(config, preset=preset)
    assert len(summary["accuracy_curve"]) == 3 and summary["method"] == preset.split("-")[1]


def test_joint_training_is_one_task(images, tmp_path) -> None:
    summary = run(
        tiny_config(images, tmp_path / "run", "--tasks.sizes", "[4]", preset="demo-joint"), preset="demo-joint"
    )
    assert len(summary["accuracy_curve"]) == 1 and summary["forgetting"] is None


def test_adamw_average_pooling_bf16_and_periodic_accuracy_run(images, tmp_path) -> None:
    config = tiny_config(
        images,
        tmp_path / "run",
        "--tasks.sizes",
        "[2,2]",
        "--optim.name",
        "adamw",
        "--optim.lr",
        "0.001",
        "--runtime.precision",
        "bf16",
        "--eval.every_epochs",
        "1",
        "--model.kwargs",
        "{img_size: 16, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2, global_pool: avg, class_token: false}",
    )
    run(config, preset="demo")
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    epochs = [e for e in events if e["event"] == "epoch"]
    assert len(epochs) == 4 and all(0 <= e["test_accuracy"] <= 100 and "train_accuracy" in e for e in epochs)


def test_an_existing_run_is_never_overwritten(images, finished) -> None:
    output, _ = finished
    before = (output / "summary.json").read_bytes()
    with pytest.raises(UserError, match="exists already: add --resume"):
        run(tiny_config(images, output, *SIZES), preset="demo")
    assert (output / "summary.json").read_bytes() == before


def test_the_saved_model_predicts_as_the_run_evaluated(images, finished) -> None:
    output, summary = finished
    model = load_run(output)
    paths = sorted((images / "test").rglob("*.png"))
    predictions = list(predict(model, paths, top_k=4))
    hits = [p.classes[0] == Path(p.path).parent.name for p in predictions]
    assert 100 * sum(hits) / len(hits) == pytest.approx(summary["last_accuracy"])
    assert all(sum(p.probabilities) == pytest.approx(1, abs=1e-5) for p in predictions)


@pytest.mark.parametrize(
    "change, name",
    [
        (("--optim.lr", "0.02"), "--optim.lr"),
        (("--seed", "7"), "--seed"),
        (("--optim.batch_size", "4"), "--optim.batch_size"),
        (("--tasks.sizes", "[1,1,2]"), "--tasks.sizes"),
        (("--data.image_size", "24"), "--data.image_size|--model.kwargs"),
    ],
)
def test_resume_refuses_another_configuration_by_name(images, finished, change, name) -> None:
    output, _ = finished
    with pytest.raises(UserError, match=name):
        run(tiny_config(images, output, *SIZES, *change), preset="demo", resume=True)


def test_resume_refuses_other_images(finished, tmp_path) -> None:
    output, _ = finished
    other = write_images(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="--data.root: the images are not those"):
        run(tiny_config(other, output, *SIZES), preset="demo", resume=True)


def test_tensorboard_gets_the_same_numbers(images, tmp_path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "run"
    summary = run(tiny_config(images, output, "--tasks.sizes", "[2,2]", "--track.tensorboard", "true"), preset="demo")
    events = accumulator.EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("task/accuracy")] == pytest.approx(summary["accuracy_curve"], abs=1e-4)
    assert len(events.Scalars("epoch/lr/head")) == 4


def test_a_tracker_that_is_not_installed_is_named(images, tmp_path) -> None:
    with pytest.raises(UserError, match="--track.wandb true: the package wandb is not installed"):
        run(tiny_config(images, tmp_path / "run", "--track.wandb", "true"), preset="demo")


def test_a_stopped_run_evaluates_as_its_last_finished_task(images, finished, tmp_path) -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 40

    config = tiny_config(images, tmp_path / "run", *SIZES, "--checkpoint.keep", "1", "--optim.epochs", "6")
    with pytest.raises(Interrupted):
        run(config, preset="demo", should_stop=should_stop)
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    done = [e for e in events if e["event"] == "task"]
    assert done and events[-1]["event"] == "epoch", "the stop must fall within a task"
    model = load_run(tmp_path / "run")
    assert model.num_tasks_done == len(done)
    seen = {model.name_of(i) for i in range(model.plan.offsets[model.num_tasks_done])}
    paths = sorted(p for p in (images / "test").rglob("*.png") if p.parent.name in seen)
    hits = [p.classes[0] == Path(p.path).parent.name for p in predict(model, paths, top_k=1)]
    assert 100 * sum(hits) / len(hits) == pytest.approx(done[-1]["accuracy"])


def test_a_second_process_on_one_folder_is_refused_while_the_first_lives(images, tmp_path) -> None:
    config = tiny_config(images, tmp_path / "run", *SIZES)
    run(config, preset="demo")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from pathlib import Path; "
            "from slca_fast.runs.folder import RunFolder;"
         "kept = RunFolder(Path(sys.argv[1]), resume=True); print('held', flush=True); time.sleep(100)", config.output],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by another process .*{holder.pid}"):
            run(config, preset="demo", resume=True)
    finally:
        holder.kill()
        holder.wait()
    assert run(config, preset="demo", resume=True)["status"] == "complete"
