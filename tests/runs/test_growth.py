"""What a run keeps of finished tasks: written once, whole again after damage, and no part of later saves."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config, write_images

from slca_fast.experiment import run
from slca_fast.metrics import TaskResult
from slca_fast.model.head import Classifier
from slca_fast.runs.folder import positions
from slca_fast.runs.old_weights import stacked_heads
from slca_fast.runs.results import ResultsFile, confusion_of
from slca_fast.runs.snapshot import BadSnapshot, read_snapshot, write_snapshot
from slca_fast.runs.state import RunState

RESULTS = [TaskResult(50.0 + t, 100 / 3, (None, *(25.0 * k for k in range(t)))) for t in range(4)]
ONE_BY_ONE = ("--tasks.initial", "1", "--tasks.increment", "1", "--checkpoint.keep", "100")
AFTER_ONE, AFTER_EIGHT = "task-001-epoch-0000-step-000000", "task-008-epoch-0000-step-000000"
NAMES = ("results.jsonl", "results-copy.jsonl")


def written(folder: Path) -> ResultsFile:
    folder.mkdir(exist_ok=True)
    made = ResultsFile(folder)
    made.replace(())
    for task, result in enumerate(RESULTS):
        made.append(task, result)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, dict]:
    """Images of eight classes, and a run of them in eight tasks whose checkpoints are all kept."""
    images = write_images(tmp_path_factory.mktemp("images"), num_classes=8, per_class=4)
    output = tmp_path_factory.mktemp("runs") / "run"
    return images, output, run(tiny_config(images, output, *ONE_BY_ONE), preset="demo")


def test_a_late_save_is_an_early_one_and_the_rows_of_the_new_classes(finished) -> None:
    _, output, _ = finished
    early, late = (
        {path.name: path.stat().st_size for path in folder.iterdir()}
        for folder in (p for p in positions(output / "checkpoints") if p.name in (AFTER_ONE, AFTER_EIGHT))
    )
    assert late["state.json"] - early["state.json"] < 200
    assert late["backbone.safetensors"] == early["backbone.safetensors"]
    # A row of 24 weights and a bias in float32 for each class, and longer numbers in the header.
    assert late["heads.safetensors"] - early["heads.safetensors"] <= 7 * 25 * 4 + 16
    # At most one cell of three int64 for each of two test images a class.
    assert late["confusion.safetensors"] - early["confusion.safetensors"] <= 14 * 3 * 8 + 16


@pytest.mark.parametrize("lost", [*NAMES, "summary"])
def test_a_run_whose_files_are_lost_goes_on_to_the_same_end(finished, tmp_path, lost: str) -> None:
    images, output, summary = finished
    shutil.copytree(output, tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / lost if lost in NAMES else tmp_path / "run/confusion.csv").unlink()
    (tmp_path / "run/summary.json").unlink()
    if lost in NAMES:
        shutil.rmtree(checkpoints / AFTER_EIGHT)
    again = run(tiny_config(images, tmp_path / "run", *ONE_BY_ONE), preset="demo", resume=True)
    for name in ("accuracy_matrix", "accuracy_curve", "top5_curve", "weights_sha256"):
        assert again[name] == summary[name]
    for name in ("confusion.csv", "accuracy_matrix.csv", *(f"checkpoints/{name}" for name in NAMES)):
        assert (tmp_path / "run" / name).read_bytes() == (output / name).read_bytes()


def test_a_checkpoint_with_dense_results_goes_on(finished, tmp_path) -> None:
    images, output, summary = finished
    shutil.copytree(output, tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    newest = checkpoints / AFTER_EIGHT
    tensors, state = read_snapshot(newest)
    tensors.pop("confusion")
    dense_CC = np.loadtxt(output / "confusion.csv", delimiter=",", dtype=int).tolist()
    results = ResultsFile(checkpoints).read(8)
    old = [{**result.as_dict(), "confusion": dense_CC if result is results[-1] else [[0]]} for result in results]
    shutil.rmtree(newest)
    write_snapshot(newest, tensors, {**state, "results": old})
    for path in (
        *(checkpoints / name for name in NAMES),
        tmp_path / "run/summary.json",
        tmp_path / "run/confusion.csv",
    ):
        path.unlink()
    again = run(tiny_config(images, tmp_path / "run", *ONE_BY_ONE), preset="demo", resume=True)
    assert again["accuracy_matrix"] == summary["accuracy_matrix"]
    for name in ("confusion.csv", *(f"checkpoints/{name}" for name in NAMES)):
        assert (tmp_path / "run" / name).read_bytes() == (output / name).read_bytes()


@pytest.mark.parametrize(
    "field, value",
    [
        ("position", {"task": 10**400}),
        ("position", {"task": "1"}),
        ("position", {"task": 9}),
        ("position", 3),
        ("class_order", [0]),
        ("class_names", "abc"),
        ("task_sizes", [-1]),
        ("metrics_bytes", -5),
        ("metrics_bytes", True),
        ("num_ranks", 0),
        ("seconds", []),
        ("total_seconds", "much"),
        ("trained_images", 1.5),
        ("config", None),
        ("results", [3]),
        ("attention", 3),
    ],
)
def test_a_state_that_no_run_wrote_is_refused_by_field(finished, field: str, value: object) -> None:
    _, state = read_snapshot(positions(finished[1] / "checkpoints")[-1])
    assert RunState.from_dict(state).position.task == 8
    with pytest.raises(BadSnapshot, match=f"state.json.*{'result' if field == 'results' else field}"):
        RunState.from_dict({**state, field: value})
    if field not in ("results", "attention", "num_ranks"):
        with pytest.raises(BadSnapshot, match=f"state.json.*{field}"):
            RunState.from_dict({name: state[name] for name in state if name != field})


def test_results_come_back_as_they_were(tmp_path) -> None:
    made = written(tmp_path)
    for num_tasks in range(len(RESULTS) + 1):
        assert made.read(num_tasks) == tuple(RESULTS[:num_tasks])
    with pytest.raises(BadSnapshot, match="results of task 5 are lost"):
        made.read(5)


def test_appending_costs_the_same_however_many_tasks_are_done(tmp_path, monkeypatch) -> None:
    made, written_bytes, whole = ResultsFile(tmp_path), [], os.write
    monkeypatch.setattr(
        os, "write", lambda descriptor, data: written_bytes.append(len(data)) or whole(descriptor, data)
    )
    made.replace(())
    for task in range(200):
        made.append(task, TaskResult(50.0, 50.0, (50.0,) * (task + 1)))
    early, late = sum(written_bytes[:2]), sum(written_bytes[-2:])
    assert late - early <= 2 * 199 * len("50.0, ") + 8


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_bit_or_a_lost_or_torn_file_costs_nothing(tmp_path, name: str) -> None:
    made, rng = written(tmp_path), random.Random(7)
    whole = (tmp_path / name).read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(bytes(data))
        assert made.read(4) == tuple(RESULTS)
    for length in range(0, len(whole), 7):
        (tmp_path / name).write_bytes(whole[:length])
        assert made.read(4) == tuple(RESULTS)
    (tmp_path / name).unlink()
    assert made.read(4) == tuple(RESULTS)
    made.replace(RESULTS)
    assert {(tmp_path / name).read_bytes() for name in NAMES} == {whole}


def test_both_files_damaged_is_a_bad_snapshot_that_names_the_task(tmp_path) -> None:
    made = written(tmp_path)
    for name in NAMES:
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join([*lines[:2], lines[2].replace("52.0", "92.0"), lines[3]]))
    with pytest.raises(BadSnapshot, match="task 3"):
        made.read(4)
    assert made.read(2) == tuple(RESULTS[:2])


def test_lines_after_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path) -> None:
    made = written(tmp_path)
    made.replace(made.read(2))
    made.append(2, TaskResult(1.0, 2.0, (3.0, 4.0, 5.0)))
    assert made.read(3)[2].accuracy == 1.0
    with pytest.raises(BadSnapshot):
        made.read(4)


@pytest.mark.parametrize(
    "cells, num_classes",
    [
        ([[0, 1, 3]], 2**60),
        ([[0, 1, 3]], 0),
        ([[0, 2, 3]], 2),
        ([[-1, 0, 3]], 2),
        ([[0, 0]], 2),
        ([[0.0, 0.0, 1.0]], 2),
        ([[0, 0, 1]], 2.0),
        ([[0, 0, 1]], [2]),
    ],
)
def test_a_confusion_that_no_run_wrote_is_refused(cells: list, num_classes: object) -> None:
    with pytest.raises(BadSnapshot, match="confusion.safetensors"):
        confusion_of({"cells": torch.tensor(cells), "num_classes": torch.tensor(num_classes)}, 8)


def test_no_heads_come_back_as_no_heads() -> None:
    heads = Classifier(feature_dim=3)
    assert heads.stacked() == {}
    heads.load_stacked(stacked_heads(heads.stacked()))
    assert not heads.linears
