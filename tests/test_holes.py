"""Streams in which a label has no images, as DomainNet's published lists: they run to their end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config
from PIL import Image

from slca_fast.errors import DataError
from slca_fast.experiment import run
from slca_fast.methods.alignment import align_classifier
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.report.run_page import write_report
from slca_fast.runs.observer import Observer
from slca_fast.runs.trained import load_run

DOMAINS = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")
CLASSES = ("axe", "bus", "cup")


def write_domains(root: Path) -> Path:
    """Six domains of three classes, in folders as ``prepare domainnet`` makes them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for c, name in enumerate(CLASSES):
            for d, domain in enumerate(DOMAINS):
                folder = root / split / name / domain
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 60, (16, 16, 3)) + 10 * d
                    pixels[:, :: c + 1, c % 3] += 120
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (root / "domains.json").write_text(json.dumps(DOMAINS))
    return root


@pytest.fixture
def domains(tmp_path) -> Path:
    return write_domains(tmp_path / "images")


def dil(root: Path, output: Path, *extra: str, preset: str = "demo"):
    return tiny_config(root, output, "--tasks.scenario", "dil", "--tasks.shuffle", "false", *extra, preset=preset)


@pytest.mark.thorough
@pytest.mark.parametrize("preset", ["demo", "demo-slca", "demo-ncm"])
@pytest.mark.parametrize("hole", [("train/bus/painting", "test/axe/painting"), ("train/cup/clipart", "test/cup/real")])
def test_a_stream_of_domainnets_shape_with_its_holes_runs_resumes_and_evaluates(
    domains, tmp_path, preset, hole
) -> None:
    for place in hole:
        shutil.rmtree(domains / place)
    summary = run(dil(domains, tmp_path / "run", preset=preset), preset=preset)
    assert summary["status"] == "complete" and len(summary["accuracy_curve"]) == 6
    assert all(value is not None for row in summary["accuracy_matrix"] for value in row[:1])
    model = load_run(tmp_path / "run", "cpu")
    assert model.classifier.task_sizes == (3,) * 6
    again = run(dil(domains, tmp_path / "run", preset=preset), preset=preset, resume=True)
    assert again["weights_sha256"] == summary["weights_sha256"]


def test_the_start_and_the_summary_name_classes_without_images(domains, tmp_path) -> None:
    class Messages(Observer):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def message(self, text: str) -> None:
            self.lines.append(text)

    shutil.rmtree(domains / "train/bus/painting")
    shutil.rmtree(domains / "test/axe/painting")
    messages = Messages()
    summary = run(dil(domains, tmp_path / "run", preset="demo-ncm"), preset="demo-ncm", observer=messages)
    expected = [
        "no image of class bus in domain painting in train/",
        "no image of class axe in domain painting in test/",
    ]
    assert [line for line in messages.lines if line.startswith("note: ")] == [f"note: {line}" for line in expected]
    assert summary["data_problems"]["classes_without_images"] == expected
    assert f"Empty from the start: {'; '.join(expected)}." in write_report(tmp_path / "run").read_text()


def test_alignment_leaves_out_classes_without_rows_and_gives_the_same_as_without_them() -> None:
    """A class without rows takes part as a negative only: its bias falls, the others are told from it."""
    generator = torch.Generator().manual_seed(0)
    gaussians = ClassGaussians(4)
    labels = torch.tensor([0, 2] * 20)
    gaussians.update(torch.randn(40, 4, generator=generator) + labels[:, None], labels)
    weight, bias = torch.randn(4, 4, generator=generator), torch.zeros(4)
    aligned = align_classifier(
        weight, bias, gaussians, [3, 1], epochs=2, generator=torch.Generator().manual_seed(1), mean_scaling=True
    )
    assert all(tensor.isfinite().all() for tensor in aligned)
    assert aligned[1][1] < 0 and aligned[1][3] < 0
    assert not torch.equal(aligned[0], weight)
    with pytest.raises(ValueError, match="Gaussians for 0 classes"):
        align_classifier(weight, bias, ClassGaussians(4), [3, 1])


def test_a_class_that_quarantine_empties_at_run_time_does_not_end_the_run(tmp_path) -> None:
    from helpers import write_images

    root = write_images(tmp_path / "images")
    for path in (root / "train/class2").iterdir():
        # The header is intact, the pixels are not: found only when the image is decoded.
        content = bytearray(path.read_bytes())
        start = content.index(b"IDAT") + 6
        content[start : start + 40] = bytes(40)
        path.write_bytes(content)
    config = tiny_config(root, tmp_path / "run", "--tasks.sizes", "[2,2]", "--data.policy", "quarantine")
    summary = run(config, preset="demo")
    assert summary["status"] == "complete" and summary["data_problems"]["quarantined"] == 10


def test_a_task_that_quarantine_empties_altogether_is_named(tmp_path) -> None:
    from helpers import write_images

    root = write_images(tmp_path / "images", num_classes=2)
    for path in (root / "train").rglob("*.png"):
        content = bytearray(path.read_bytes())
        start = content.index(b"IDAT") + 6
        content[start : start + 40] = bytes(40)
        path.write_bytes(content)
    config = tiny_config(root, tmp_path / "run", "--tasks.sizes", "[2]", "--data.policy", "quarantine")
    with pytest.raises(DataError, match="none of these 20 images can be decoded"):
        run(config, preset="demo")
