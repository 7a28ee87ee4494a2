"""Run folders of version 0.1.0 load, resume and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import slca_fast
from PIL import Image

from slca_fast.errors import UserError
from slca_fast.report.comparison import comparison_rows
from slca_fast.report.run_page import write_report
from slca_fast.runs.old_runs import with_method
from slca_fast.runs.trained import load_run, predict

OLD = Path(__file__).parent / "old_runs"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy of the runs beside the images that they were trained on (uncompressed: their sizes never change)."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for c in range(4):
            place = tmp_path / "images" / split / f"class{c}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 80, (16, 16, 3))
                pixels[:, :: c + 1, c % 3] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:03d}.bmp")
    for run in ("slca-complete", "slcapp-stopped"):
        shutil.copytree(OLD / run, tmp_path / run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_finished_run_evaluates_predicts_and_reports(folder) -> None:
    before = json.loads((folder / "slca-complete/summary.json").read_text())
    model = load_run(folder / "slca-complete", "cpu")
    assert model.config.method == "slca" and model.num_tasks_done == 3
    found = list(predict(model, [folder / "images/test/class0/000.bmp"], 2))
    assert len(found[0].classes) == 2 and 0 < found[0].probabilities[0] <= 1
    evaluated = slca_fast("evaluate", "slca-complete", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["accuracy"] == pytest.approx(before["last_accuracy"], abs=9)
    assert "SLCA" in write_report(folder / "slca-complete").read_text()
    assert comparison_rows([folder / "slca-complete"])[0]["method"] == "SLCA"


def test_a_stopped_run_goes_on_where_it_was(folder) -> None:
    before = json.loads((folder / "slcapp-stopped/summary.json").read_text())
    again = slca_fast("train", "slcapp-stopped/config.yaml", "--resume")
    assert again.returncode == 0, again.stderr
    assert "resuming at task 2" in again.stdout
    summary = json.loads((folder / "slcapp-stopped/summary.json").read_text())
    assert summary["status"] == "complete" and summary["method"] == "slcapp"
    assert summary["accuracy_curve"][:1] == before["accuracy_curve"] and len(summary["accuracy_curve"]) == 3
    assert slca_fast("evaluate", "slcapp-stopped").returncode == 0


def test_a_finished_run_resumes_to_its_own_summary(folder) -> None:
    before = json.loads((folder / "slca-complete/summary.json").read_text())
    assert slca_fast("train", "slca-complete/config.yaml", "--resume").returncode == 0
    after = json.loads((folder / "slca-complete/summary.json").read_text())
    assert after["weights_sha256"] == before["weights_sha256"]


def test_a_changed_setting_is_still_refused(folder) -> None:
    again = slca_fast("train", "slcapp-stopped/config.yaml", "--resume", "--optim.lr", "0.5")
    assert again.returncode == 2 and "--optim.lr is 0.5 but the run was started with 0.01" in again.stderr


@pytest.mark.parametrize(
    "change, method",
    [
        ({}, "slcapp"),
        ({"align": {"epochs": 5, "mean_scaling": True}}, "slca"),
        ({"align": {"epochs": 0}, "optim": {"backbone_lr_scale": 0.1}}, "slowft"),
        ({"align": {"epochs": 0}, "optim": {"backbone_lr_scale": 1.0}}, "seqft"),
        ({"align": {"epochs": 0}, "model": {"trainable": "head"}}, "probe"),
        ({"align": {"epochs": 0}, "tasks": {"scenario": "cil", "sizes": [4]}}, "joint"),
    ],
)
def test_the_method_is_guessed_from_flags_only_where_a_run_does_not_name_it(change, method) -> None:
    config = yaml.safe_load((OLD / "slcapp-stopped/config.yaml").read_text())
    assert with_method({**config, **change})["method"] == method
    assert with_method({**config, **change, "method": "ncm"})["method"] == "ncm"


def test_a_folder_that_holds_no_configuration_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no readable run"):
        load_run(tmp_path)
