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
import torch
import yaml
from edits import (
    KNOWN,
    OF_CHECKPOINTS,
    OF_CONFIG,
    OF_RESULTS,
    VALUES,
    WHOLE,
    Edit,
    changed,
    leaves,
    newest,
    sign,
)
from helpers import TINY_ARGS, slca_fast, tiny_config, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from slca_fast.cli import main
from slca_fast.experiment import run
from slca_fast.report import comparison_page, run_page
from slca_fast.report.drawing import PNG_THEME

AT_LENGTH = "SLCA_FAST_TEST_EDITS" in os.environ
EDITS = int(os.environ.get("SLCA_FAST_TEST_EDITS", "30"))
HELD = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
MOST_GROWTH = 2**30
ARGS = ["--tasks.sizes", "2,2", "--checkpoint.keep", "3"]
COMMANDS = ("evaluate", "predict", "report", "compare", "export", "resume")

UNREAD_BY_EVALUATION = {"huge results", "key twice", "confusion of nobody", "no statistics", "lock is a folder"}
WITHOUT_AN_OLDER = {
    "NaN frozen",
    "fewer frozen weights",
    "frozen weights of one number",
    "frozen weights of nobody",
    "no frozen weights",
    "empty checkpoints",
    "file for all checkpoints",
    "no checkpoints",
}
NEEDED_BY_COMPARISONS = {"no accuracies", "number for task sizes", "summary of other kinds"}
UNSIGNED = ("missing", "folder", "loop of links", "endless", "pipe", "huge")
SAYS_NOTHING = {"no accuracies", "empty classes", "NUL in the matrix"}


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


def weights(run: Path) -> str:
    """Digest of all that a finished run has learnt."""
    return json.loads((run / "summary.json").read_text())["weights_sha256"]


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


def edited_copy(folders: Path, place: Path, edit, source: str = "run") -> Path:
    copy = place / "edited"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folders / source, copy, symlinks=True)
    edit(copy)
    return copy


@pytest.mark.parametrize("name", OF_CONFIG)
def test_an_edited_configuration_is_one_line_that_names_it(name, folders, tmp_path, drafts, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = tried("evaluate", folders, edited_copy(folders, tmp_path, OF_CONFIG[name]))
    assert code == 2 and said.count("\n") == 1 and "config.yaml" in said
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("name", OF_CHECKPOINTS)
def test_an_edited_checkpoint_is_passed_over_with_its_reason(name, folders, tmp_path) -> None:
    code, said = tried("evaluate", folders, edited_copy(folders, tmp_path, OF_CHECKPOINTS[name]))
    if name in UNREAD_BY_EVALUATION:
        assert code == 0 and said == ""
    elif name in WITHOUT_AN_OLDER:
        assert code == 2 and said.count("\n") == 1 and "edited" in said
    else:
        assert code == 0 and said.count("\n") == 1 and "checkpoint ignored: " in said


@pytest.mark.parametrize("name", list(OF_CHECKPOINTS)[::8])
def test_a_run_with_an_edited_checkpoint_goes_on_to_the_same_end(name, folders, tmp_path, drafts) -> None:
    edited = edited_copy(folders, tmp_path, OF_CHECKPOINTS[name])
    code, _ = tried("resume", folders, edited)
    assert code == 2 or weights(edited) == weights(folders / "run")


@pytest.mark.parametrize("name", OF_RESULTS)
def test_edited_results_are_shown_as_far_as_they_can_be(name, folders, tmp_path, drafts) -> None:
    edited = edited_copy(folders, tmp_path, OF_RESULTS[name])
    assert tried("report", folders, edited)[0] == 0
    page = (edited / "report.html").read_text()
    assert name in SAYS_NOTHING or "left out" in page or "skipped" in page
    if name in NEEDED_BY_COMPARISONS:
        assert tried("compare", folders, edited)[0] == 0


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("source", ["run", "half"])
@pytest.mark.parametrize("name", KNOWN if AT_LENGTH else list(KNOWN)[::12])
def test_no_command_gives_a_traceback(name, source, folders, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        tried(command, folders, edited_copy(folders, tmp_path, KNOWN[name], source))


@pytest.mark.slow
def test_a_process_of_its_own_says_one_line(folders, tmp_path) -> None:
    edited = edited_copy(folders, tmp_path, OF_CONFIG["yaml nested deeply"])
    said = slca_fast("evaluate", str(edited))
    assert said.returncode == 2 and said.stderr.count("\n") == 1 and "config.yaml" in said.stderr


def test_weights_tried_in_vain_leave_no_trace_in_a_run_that_starts_over(folders, tmp_path, drafts) -> None:
    edited = edited_copy(folders, tmp_path, lambda run: None, "half")
    for checkpoint in (edited / "checkpoints").glob("task-*"):
        # The backbone is intact and is restored before the heads are seen to be none.
        (checkpoint / "heads.safetensors").write_bytes(save({"evil": torch.zeros(1)}))
        sign(checkpoint)
    assert tried("resume", folders, edited)[0] == 0
    assert weights(edited) == weights(folders / "run")


FILES = (
    "config.yaml",
    "summary.json",
    "metrics.jsonl",
    "problems.json",
    "accuracy_matrix.csv",
    "confusion.csv",
    "checkpoints/results.jsonl",
    "checkpoints/results-copy.jsonl",
    "checkpoints/statistics-task-000.safetensors",
    "checkpoints/frozen/MANIFEST.json",
    "checkpoints/frozen/backbone.safetensors",
    *(f"checkpoints/{{newest}}/{name}" for name in ("MANIFEST.json", "state.json", "heads.safetensors")),
)


@st.composite
def mutations(draw) -> Edit:
    """One change of one file: as a whole, or of one value in it, signed where the file is a checkpoint's."""
    name, whole = draw(st.sampled_from(FILES)), draw(st.sampled_from([None, *WHOLE]))
    place, value, delete = draw(st.floats(0, 0.999)), draw(st.sampled_from(VALUES)), draw(st.booleans())
    signed = draw(st.booleans())

    def edit(run: Path) -> None:
        path = run / name.format(newest=newest(run).name)
        if whole is not None or path.suffix not in READERS:
            WHOLE[whole or "truncated"](path)
        else:
            read, write = READERS[path.suffix]
            values = read(path.read_text())
            if paths := list(leaves(values)):
                changed(values, paths[int(place * len(paths))], value, delete)
            else:
                values = value
            path.write_text(write(values))
        if signed and "{newest}" in name and path.name != "MANIFEST.json" and whole not in UNSIGNED:
            sign(newest(run))

    return edit


READERS = {
    ".json": (json.loads, json.dumps),
    ".yaml": (yaml.safe_load, yaml.safe_dump),
    ".jsonl": (
        lambda text: [json.loads(line) for line in text.splitlines()],
        lambda lines: "".join(f"{json.dumps(line)}\n" for line in lines),
    ),
}


@pytest.mark.slow
@given(mutations(), st.sampled_from(COMMANDS), st.sampled_from(["run", "half"]))
@settings(max_examples=EDITS, deadline=None, suppress_health_check=HELD)
def test_any_single_mutation(folders, drafts, edit, command, source) -> None:
    place = folders / "place"
    place.mkdir(exist_ok=True)
    tried(command, folders, edited_copy(folders, place, edit, source))
