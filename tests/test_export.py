"""Exporting leaves the model that it was given as it is, whether it succeeds or is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_config, write_images

from slca_fast.errors import UserError
from slca_fast.experiment import run
from slca_fast.export import export_peft, export_timm
from slca_fast.model.lora import lora_layers
from slca_fast.runs.trained import TrainedModel, load_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    run(tiny_config(write_images(folder / "images"), folder / "run", "--tasks.sizes", "[2,2]"))
    return folder / "run"


@pytest.fixture
def model(finished) -> TrainedModel:
    trained = load_run(finished, "cpu")
    assert list(lora_layers(trained.backbone.vit)), "the run must have LoRA for these tests to mean anything"
    return trained


PIXELS = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def everything(model: TrainedModel) -> dict[str, torch.Tensor]:
    """A copy of all weights, and what the model predicts."""
    vit = copy.deepcopy(model.backbone.vit.state_dict())
    return {**vit, **copy.deepcopy(dict(model.classifier.tensors())), "scores": model.scores(PIXELS)}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("export", [export_timm, export_peft])
def test_exporting_twice_and_predicting_afterwards_give_the_same(model, tmp_path, export) -> None:
    before = everything(model)
    first = [path.read_bytes() for path in export(model, tmp_path / "first")]
    assert_same(everything(model), before)
    assert [path.read_bytes() for path in export(model, tmp_path / "second")] == first
    assert_same(everything(model), before)


def test_each_format_can_follow_the_other(model, finished, tmp_path) -> None:
    export_timm(model, tmp_path / "timm")
    after = [path.read_bytes() for path in export_peft(model, tmp_path / "peft")]
    assert after == [path.read_bytes() for path in export_peft(load_run(finished, "cpu"), tmp_path / "alone")]
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["num_classes"] == 4


class _NoHead:
    """A classifier without weights that rank as it does."""

    def __init__(self, model: TrainedModel) -> None:
        self.task_sizes = model.classifier.task_sizes

    def linear(self) -> None:
        return None


def test_a_method_without_a_linear_head_is_refused_by_name(model, tmp_path) -> None:
    with pytest.raises(UserError, match=f"classifier of method {model.config.method} is not linear"):
        export_timm(replace(model, classifier=_NoHead(model)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_refused_export_leaves_the_model_and_the_folder_alone(model, tmp_path) -> None:
    domains = replace(model, plan=replace(model.plan, scenario="dil"))
    before = everything(model)
    with pytest.raises(UserError, match="one head per domain"):
        export_timm(domains, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for export in (export_timm, export_peft):
        with pytest.raises(UserError, match="is not empty"):
            export(model, tmp_path / "full")
    assert_same(everything(model), before)
    assert not (tmp_path / "out").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]
