"""A run is tested again on the classes and domains that it learned, found by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from edits import newest, sign
from helpers import tiny_config
from PIL import Image

from slca_fast.cli import main
from slca_fast.experiment import run

DOMAINS = ("paint", "photo", "sketch")


def write_domains(root: Path, names: tuple[str, ...]) -> Path:
    """Two classes in these domains. Whatever a model learns, its accuracies differ: the test images of each domain are
    of another number and mix, and the last domain's classes are swapped in them.
    """
    rng = np.random.default_rng(0)
    for split, counts_DC in (("train", [(4, 4), (5, 5), (6, 6)]), ("test", [(1, 3), (3, 3), (6, 2)])):
        for c in range(2):
            for d, domain in enumerate(DOMAINS):
                folder = root / split / f"class{c}" / domain
                folder.mkdir(parents=True)
                shown = 1 - c if (split, d) == ("test", 2) else c
                for i in range(counts_DC[d][c]):
                    pixels = rng.integers(0, 80, (16, 16, 3))
                    pixels[:, :: shown + d + 1, shown] += 150
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (root / "domains.json").write_text(json.dumps(names))
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("retest")
    images = write_domains(folder / "images", DOMAINS)
    run(tiny_config(images, folder / "run", "--tasks.scenario", "dil"), preset="demo")
    return folder


def evaluated(capsys, *args: str) -> tuple[int, str]:
    code = main(["evaluate", *args])
    captured = capsys.readouterr()
    return code, captured.out if code == 0 else captured.err


def test_reordered_domains_are_matched_by_name(finished, tmp_path, capsys) -> None:
    code, expected = evaluated(capsys, str(finished / "run"), "--json")
    other = shutil.copytree(finished / "images", tmp_path / "images")
    (other / "domains.json").write_text(json.dumps(DOMAINS[::-1]))
    assert code == 0 and len(set(json.loads(expected)["per_task"])) > 1
    assert evaluated(capsys, str(finished / "run"), "--json", "--data.root", str(other)) == (0, expected)


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        (None, 2, "lacks the run's domain paint and 2 more"),
        (("paint", "photo"), 2, "lacks the run's domain sketch"),
        (("paint", "photo", "sketch", "clip"), 2, "has what the run never saw, domain clip"),
        (("paint", "photo", "photo", "sketch"), 3, "names the domain 'photo' twice"),
    ],
)
def test_other_domains_are_refused_by_name(names, code, said, finished, tmp_path, capsys) -> None:
    other = shutil.copytree(finished / "images", tmp_path / "images")
    if names is None:
        (other / "domains.json").unlink()
    else:
        (other / "domains.json").write_text(json.dumps(names))
    for domain in set(names or DOMAINS) ^ set(DOMAINS):
        for split in ("train", "test"):
            for c in range(2):
                folder = other / split / f"class{c}" / domain
                if folder.exists():
                    shutil.rmtree(folder)
                else:
                    shutil.copytree(folder.parent / "photo", folder)
    found, text = evaluated(capsys, str(finished / "run"), "--data.root", str(other))
    assert found == code and said in text and text.count("\n") == 1


def test_other_classes_are_refused_by_name(finished, tmp_path, capsys) -> None:
    other = shutil.copytree(finished / "images", tmp_path / "images")
    for split in ("train", "test"):
        (other / split / "class1").rename(other / split / "dog")
    found, text = evaluated(capsys, str(finished / "run"), "--data.root", str(other))
    assert found == 2 and "lacks the run's class class1" in text


def test_a_run_that_does_not_name_its_domains_takes_its_own_images_only(finished, tmp_path, capsys) -> None:
    old = shutil.copytree(finished / "run", tmp_path / "run")
    path = newest(old) / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("domain_names") == list(DOMAINS)
    path.write_text(json.dumps(state))
    sign(path.parent)
    moved = shutil.copytree(finished / "images", tmp_path / "images")
    assert evaluated(capsys, str(old), "--data.root", str(moved))[0] == 0
    (moved / "domains.json").write_text(json.dumps(DOMAINS[::-1]))
    code, text = evaluated(capsys, str(old), "--data.root", str(moved))
    assert code == 2 and "not the images that the run was trained on" in text
