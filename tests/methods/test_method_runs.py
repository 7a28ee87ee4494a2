"""A method beyond SLCA in whole runs: it trains, resumes, evaluates, predicts, exports and compares."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from helpers import slca_fast, tiny_config, write_images
from safetensors.torch import load_file

from slca_fast.errors import UserError
from slca_fast.experiment import Interrupted, run
from slca_fast.export import export_timm
from slca_fast.methods.base import Method
from slca_fast.methods.table import METHODS, About
from slca_fast.runs.trained import load_run, predict

SIZES = ("--tasks.sizes", "[2,1,1]")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("runs") / "ncm"
    return output, run(tiny_config(images, output, *SIZES, preset="demo-ncm"), preset="demo-ncm")


def stopping_after(steps: int):
    asked = []
    return lambda: asked.append(1) or len(asked) > steps


@pytest.mark.parametrize("stop_after", [12, *(pytest.param(n, marks=pytest.mark.thorough) for n in (0, 7, 11, 15))])
def test_ncm_resumes_to_the_same_weights_and_memory(images, finished, tmp_path, stop_after: int) -> None:
    config = tiny_config(images, tmp_path / "run", *SIZES, preset="demo-ncm")
    with pytest.raises(Interrupted):
        run(config, preset="demo-ncm", should_stop=stopping_after(stop_after))
    resumed = run(config, preset="demo-ncm", resume=True)
    assert resumed["weights_sha256"] == finished[1]["weights_sha256"]
    assert resumed["accuracy_matrix"] == finished[1]["accuracy_matrix"]


@pytest.mark.slow
def test_ncm_evaluates_predicts_and_compares_from_its_folder(images, finished) -> None:
    output, summary = finished
    assert summary["method"] == "ncm" and summary["method_title"] == "NCM"
    evaluated = slca_fast("evaluate", str(output), "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["accuracy"] == pytest.approx(summary["last_accuracy"])
    predicted = slca_fast("predict", str(output), str(images / "test/class1"), "--json")
    assert predicted.returncode == 0 and len(predicted.stdout.splitlines()) == 5
    table = slca_fast("report", str(output), "--output", str(output.parent / "comparison.html"))
    assert table.returncode == 0 and "NCM" in table.stdout


def test_ncm_exports_a_head_that_ranks_as_the_run_does(images, finished, tmp_path) -> None:
    model = load_run(finished[0], "cpu")
    paths = sorted((images / "test").rglob("*.png"))
    expected = [p.classes[0] for p in predict(model, paths, 1)]
    export_timm(model, tmp_path / "timm")
    config = json.loads((tmp_path / "timm/config.json").read_text())
    vit = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["kwargs"])
    vit.load_state_dict(load_file(tmp_path / "timm/model.safetensors"))
    vit.norm.eps = config["final_norm_eps"]
    rerun = dataclasses.replace(model, backbone=_Plain(vit), classifier=_Head(vit.eval(), model.classifier.task_sizes))
    assert [p.classes[0] for p in predict(rerun, paths, 1)] == expected


class _Plain(torch.nn.Module):
    """timm's own forward up to its head."""

    def __init__(self, vit: torch.nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vit.forward_head(self.vit.forward_features(images), pre_logits=True)


class _Head:
    def __init__(self, vit: torch.nn.Module, task_sizes: tuple[int, ...]) -> None:
        self.vit, self.task_sizes = vit, task_sizes

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return self.vit.head(features)


def test_the_method_is_switched_by_one_option_and_its_settings_are_kept(images, tmp_path) -> None:
    config = tiny_config(images, tmp_path / "run", *SIZES, "--method", "ncm", "--method_settings.metric", "euclidean")
    summary = run(config, preset="demo")
    assert summary["method"] == "ncm"
    text = (tmp_path / "run/config.yaml").read_text()
    assert "method: ncm" in text and "metric: euclidean" in text and "temperature: 0.05" in text
    with pytest.raises(UserError, match=r"--method_settings.* started with"):
        run(tiny_config(images, tmp_path / "run", *SIZES, "--method", "ncm"), preset="demo", resume=True)
    with pytest.raises(UserError, match="--method is 'slcapp' but the run was started with 'ncm'"):
        run(tiny_config(images, tmp_path / "run", *SIZES), preset="demo", resume=True)


def test_a_refused_combination_leaves_no_folder(images, tmp_path) -> None:
    done = slca_fast("train", "demo-slca", "--method", "slcapp", "--output", str(tmp_path / "run"))
    assert done.returncode == 2 and "--align.mean_scaling is True" in done.stderr
    assert not (tmp_path / "run").exists()


class Watching(Method):
    """Keeps features of the task's images from before stage 1."""

    name = "watching"
    remembers = True

    def __init__(self, config, feature_dim: int) -> None:
        super().__init__(config, feature_dim)
        self.moved: dict[str, torch.Tensor] = {}

    def before_task(self, task, features):
        before_ND, label_N = features()
        return {"before": before_ND, "label": label_N}

    def remember(self, task, features_ND, label_N, kept) -> None:
        assert torch.equal(kept["label"], label_N)
        self.moved[f"moved.{task}"] = (features_ND - kept["before"]).double().square().sum(0)

    def save(self, task, path) -> None:
        path.write_text(json.dumps(self.moved[f"moved.{task}"].tolist()))

    def load(self, task, path, device) -> None:
        self.moved[f"moved.{task}"] = torch.tensor(json.loads(path.read_text()), dtype=torch.float64)

    def tensors(self):
        return self.moved


@pytest.fixture
def watching(monkeypatch) -> None:
    """One line in the table and one module: a new method."""
    module = ModuleType("slca_fast.methods.watching")
    module.Watching = Watching
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(METHODS, "watching", About("Watching", "tests", "-", "drift", "watching:Watching"))


@pytest.mark.slow
def test_what_a_method_keeps_from_before_a_task_survives_a_stop(images, tmp_path, watching) -> None:
    options = (*SIZES, "--method", "watching")
    whole = run(tiny_config(images, tmp_path / "whole", *options), preset="demo")
    for stop_after in (0, 5, 9, 14):
        config = tiny_config(images, tmp_path / f"stopped{stop_after}", *options)
        with pytest.raises(Interrupted):
            run(config, preset="demo", should_stop=stopping_after(stop_after))
        assert run(config, preset="demo", resume=True)["weights_sha256"] == whole["weights_sha256"]
