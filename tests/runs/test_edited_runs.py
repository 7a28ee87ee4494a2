"""Run folders that somebody edited, copied half or made to hurt: one line or an older checkpoint, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import yaml
from edits import KNOWN, VALUES, changed, leaves, sign
from helpers import TINY_ARGS, slca_fast, tiny_config, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slca_fast.cli import main
from slca_fast.experiment import run
from slca_fast.report import comparison_page, run_page
from slca_fast.report.drawing import PNG_THEME

MOST_GROWTH = 2**30
ARGS = ["--tasks.sizes", "2,2", "--checkpoint.keep", "3"]
COMMANDS = ("evaluate", "predict", "report", "compare", "export", "resume")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder with ``images``, the finished ``run``, and ``half``, which lacks its last checkpoint."""
    folder = tmp_path_factory.mktemp("edited")
    run(tiny_config(write_images(folder / "images"), folder / "run", *ARGS), preset="demo")
    half = shutil.copytree(folder / "run", folder / "half")
    shutil.rmtree(half / "checkpoints" / "task-002-epoch-0000-step-000000")
    return folder


@pytest.fixture
def drafts(monkeypatch) -> None:
    """Figures are made, but not drawn: that takes a second a report."""
    for page in (run_page, comparison_page):
        monkeypatch.setattr(page, "png", lambda draw: bool(draw(PNG_THEME)) * b"")
        monkeypatch.setattr(page, "svg", lambda draw, name, description: bool(draw(PNG_THEME)) * "")


def arguments(command: str, folders: Path, edited: Path) -> list[str]:
    images = folders / "images"
    return {
        "evaluate": ["evaluate", str(edited), "--json"],
        "predict": ["predict", str(edited), str(images / "test/class0/000.png")],
        "report": ["report", str(edited)],
        "compare": ["report", str(edited), str(folders / "run"), "--output", str(edited.parent / "page.html")],
        "export": ["export", str(edited), "--format", "timm", "--to", str(edited.parent / "exported")],
        "resume": ["train", "demo", *TINY_ARGS, *ARGS, "--data.root", str(images), "--output", str(edited), "--resume"],
    }[command]


def tried(command: str, folders: Path, edited: Path) -> tuple[int, str]:
    """Exit code and stderr of a command; fails for a traceback, another exit code, and too much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments(command, folders, edited))
    shutil.rmtree(edited.parent / "exported", ignore_errors=True)
    said = err.getvalue()
    assert code in (0, 2), (command, code, said)
    assert "Traceback" not in said + out.getvalue() and "BadSnapshot" not in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH // 1024
    if code:
        assert said.splitlines()[-1].startswith("slca-fast: error: ") and len(said.splitlines()[-1]) < 1500
    return code, said


def all_commands(folders: Path, place: Path, edit, source: str = "run") -> dict[str, tuple[int, str]]:
    """What every command says of a copy of ``source`` after ``edit``."""
    found = {}
    for command in COMMANDS:
        edited = place / "edited"
        shutil.rmtree(edited, ignore_errors=True)
        shutil.copytree(folders / source, edited, symlinks=True)
        edit(edited)
        found[command] = tried(command, folders, edited)
    return found


@pytest.mark.parametrize("name", KNOWN)
def test_no_known_edit_gives_a_traceback(name, folders, tmp_path, drafts, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("run", "half") if name.startswith(("NaN", "fewer", "no ")) else ("run",):
        all_commands(folders, tmp_path, KNOWN[name], source)
    assert not (tmp_path / "PWNED").exists()
