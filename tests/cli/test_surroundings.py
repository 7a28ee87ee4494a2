"""Homes, terminals, file names and interpreters that are not what a programmer's are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from helpers import TINY_ARGS, slca_fast, write_images
from PIL import Image

from slca_fast.cli import main
from slca_fast.cli.config_args import load_source, parse_overrides
from slca_fast.config import Config
from slca_fast.machine.environment import cache_folder


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path / "images")


def train(images: Path, *args: str) -> list[str]:
    return ["train", "demo", *TINY_ARGS, "--tasks.sizes", "2,2", "--data.root", str(images), *args]


def test_a_tilde_is_the_home_wherever_a_path_stands(images, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--data.root=~/d", "--output=~/o", "--model.checkpoint=~/w.pth"]
    (tmp_path / "mine.yaml").write_text("preset: demo\noutput: ~/o\ndata: {root: ~/d}\nmodel: {checkpoint: ~/w.pth}\n")
    for config in (parse_overrides(Config(), options), load_source("~/mine.yaml").config):
        assert config.data.root == f"{tmp_path}/d" and config.output == f"{tmp_path}/o"
        assert config.model.checkpoint == f"{tmp_path}/w.pth"
    assert main([*train(images), "--output", "~/run"]) == 0
    image = "~/images/test/class0/000.png"
    for command in (
        ["evaluate", "~/run", "--data.root=~/images"],
        ["predict", "~/run", image],
        ["report", "~/run", "~/run", "--output=~/both.html"],
        ["export", "~/run", "--format", "timm", "--to=~/exported"],
        ["check-data", "~/images"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "both.html").is_file() and (tmp_path / "exported").is_dir()


def test_the_users_limit_of_megapixels_counts_not_pillows(images, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (40, 40)).save(images / "train" / "class0" / "big.png")
    assert main(["check-data", str(images), "--data.max_megapixels", "0.001"]) == 3
    assert "1600" in (said := capsys.readouterr().err) or "40 x 40" in said
    assert main(["check-data", str(images), "--data.max_megapixels", "0.002"]) == 0


def test_without_a_home_caches_are_temporary(monkeypatch, tmp_path) -> None:
    for name in ("SLCA_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / f"slca_fast-{os.getuid()}"
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/nonexistent")
    assert cache_folder() == tmp_path / f"slca_fast-{os.getuid()}"
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "slca_fast"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "utf-8:strict"])
def test_a_terminal_that_lacks_letters_gets_escapes(tmp_path, encoding) -> None:
    images = write_images(tmp_path / "bilder-\N{LATIN SMALL LETTER U WITH DIAERESIS}")
    for split in ("train", "test"):
        place = os.fsencode(images / split / "class0")
        os.rename(place + b"/000.png", place + b"/caf\xe9.png")
        os.rename(place, os.path.dirname(place) + b"/cl\xe9$x$_")
    (images / "train" / "class1" / "\N{SNOWMAN}.png").write_bytes(b"no image")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    args = [*train(images, "--output", str(tmp_path / "o")), "--seeds", "1,2", "--data.policy", "quarantine"]
    done = slca_fast(*args, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "report.html").is_file() and "comparison: " in done.stdout
    run = str(tmp_path / "o" / "seed1")
    commands = (("evaluate", run), ("predict", run, str(images / "test")), ("report", run))
    # Every command goes through the same stream.
    for command in commands if encoding == "ascii" else ():
        again = slca_fast(*command, env=environment)
        assert again.returncode == 0, again.stderr
    assert slca_fast("check-data", str(images), env=environment).returncode == 3


@pytest.mark.slow
def test_without_assertions_and_docstrings_everything_works(images, tmp_path) -> None:
    for level in ("1", "2"):
        environment = {**os.environ, "PYTHONOPTIMIZE": level}
        assert slca_fast("presets", "demo", env=environment).returncode == 0
        run = slca_fast(*train(images, "--output", str(tmp_path / level)), env=environment)
        assert run.returncode == 0, run.stderr


def test_no_assertion_does_anything() -> None:
    """``python -O`` leaves assertions out: none may change what it looks at."""
    import ast

    changing = {"pop", "append", "add", "update", "remove", "discard", "clear", "setdefault", "extend", "write"}
    package = Path(sys.modules["slca_fast"].__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                called = {
                    n.func.attr for n in ast.walk(node.test) if isinstance(n, ast.Call) and hasattr(n.func, "attr")
                }
                named = [n for n in ast.walk(node.test) if isinstance(n, ast.NamedExpr)]
                assert not called & changing and not named, f"{path}:{node.lineno}"
