"""A run folder that came from elsewhere: nothing in it acts, and what does not fit is one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_config, write_images

from slca_fast.cli import main
from slca_fast.config import LOADER_ARGUMENTS
from slca_fast.experiment import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of two tasks beside its ``images``."""
    folder = tmp_path_factory.mktemp("foreign")
    images = write_images(folder / "images")
    run(tiny_config(images, folder / "run", "--tasks.sizes", "2,2"), preset="demo")
    return folder / "run"


@pytest.fixture
def received(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "received")


def refusal(capsys, *args: str) -> str:
    """The one line of a command that must end with exit code 2."""
    assert main(args) == 2
    text = capsys.readouterr().err
    assert text.startswith("slca-fast: error: ") and text.count("\n") == 1, text
    return text


class Acts:
    """Pickles to code that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def edit_config(run: Path, **kwargs) -> None:
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["model"]["kwargs"].update(kwargs)
    path.write_text(yaml.safe_dump(values))


def test_weights_named_in_a_received_configuration_are_never_read(received, finished, tmp_path, capsys) -> None:
    torch.save({"x": Acts(tmp_path / "ran")}, tmp_path / "w.pth")
    edit_config(received, checkpoint_path=str(tmp_path / "w.pth"))
    image = str(finished.parent / "images" / "test" / "class0" / "000.png")
    for command in (("predict", str(received), image), ("evaluate", str(received))):
        said = refusal(capsys, *command)
        assert "config.yaml: --model.kwargs.checkpoint_path is " in said and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", sorted(LOADER_ARGUMENTS))
def test_arguments_of_the_loader_are_refused_by_name(name, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"--model.kwargs.{name} is " in refusal(capsys, "train", "demo", f"--model.kwargs.{name}", "x")
    assert list(tmp_path.iterdir()) == []
