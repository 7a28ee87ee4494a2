"""The table of data sets: complete, as documented, light, and read by everyone who lists data sets."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slca_fast.cli.config_args import config_help
from slca_fast.config import DataConfig
from slca_fast.data.prepare import domainnet, preparer
from slca_fast.datasets import DATASETS, preparers, recipes
from slca_fast.errors import UserError
from slca_fast.methods.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
COMMON_OPTIONS = {"source", "root", "link", "check_counts", "progress"}


@pytest.mark.parametrize("name", DATASETS)
def test_a_row_is_complete(name):
    row = DATASETS[name]
    assert min(*row.counts, row.side, *row.images_per_class) > 0 and len(set(row.domains)) == len(row.domains)
    assert (row.training.classes_per_task is None) == bool(row.domains)
    for schedule in (row.training.in21k, row.training.mocov3):
        assert max(schedule.slca_milestones + schedule.slcapp_milestones) < schedule.epochs
    config = PRESETS[f"slcapp-{name}-in21k"]()
    assert (config.data.recipe, config.data.mean, config.data.std) == (name, row.mean, row.std)
    assert PRESETS[f"joint-{name}-mocov3"]().tasks.sizes == (row.num_classes,)


@pytest.mark.parametrize("name", preparers())
def test_every_preparer_is_found_by_its_name(name):
    parameters = inspect.signature(preparer(name)).parameters
    assert {"root", "progress"} <= set(parameters)
    assert name == "synthetic" or {"source", "link", "check_counts"} <= set(parameters)


def test_made_up_stand_ins_keep_their_numbers():
    assert {name: row.images_per_class for name, row in DATASETS.items()} == {
        "cifar100": (500, 100),
        "imagenet-r": (120, 30),
        "cub200": (30, 29),
        "cars196": (42, 41),
        "resisc45": (560, 140),
        "domainnet": (1188, 512),
    }


def test_domainnets_domains_sum_to_its_row():
    assert tuple(domainnet.PUBLISHED) == DATASETS["domainnet"].domains
    assert tuple(map(sum, zip(*domainnet.PUBLISHED.values()))) == DATASETS["domainnet"].counts[:2]


def test_resisc45_is_treated_as_cub200_but_for_its_tasks():
    resisc45, cub200 = DATASETS["resisc45"], DATASETS["cub200"]
    assert resisc45.recipe == cub200.recipe
    assert resisc45.training == replace(cub200.training, classes_per_task=5)


def test_the_configuration_takes_these_recipes_only():
    for name in recipes():
        assert DataConfig(recipe=name).recipe == name
    with pytest.raises(UserError, match=r"--data\.recipe is 'resisc': give one of .*; did you mean resisc45\?"):
        DataConfig(recipe="resisc")
    assert f"--data.recipe takes {', '.join(recipes())}." in config_help()


def test_docs_list_the_table():
    text = (ROOT / "docs/data.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    documented = {row[0]: row[1:] for row in rows if row[0] in preparers()}
    assert list(documented) == list(preparers())
    for name, (title, options, counts) in documented.items():
        assert (
            set(re.findall(r"`(\w+)`", options)) == set(inspect.signature(preparer(name)).parameters) - COMMON_OPTIONS
        )
        if name in DATASETS:
            expected = "{:,} / {:,} / {}".format(*DATASETS[name].counts)
            assert title == DATASETS[name].title and counts.startswith(expected), name


def test_readme_names_every_preset():
    found = re.search(r"`\{([\w,]+)\}-\{([\w,-]+)\}-\{([\w,]+)\}` and\s`demo`", (ROOT / "README.md").read_text())
    methods, names, weights = (group.split(",") for group in found.groups())
    assert names == list(DATASETS)
    assert {f"{m}-{d}-{w}" for m in methods for d in names for w in weights} == {
        name for name in PRESETS if not name.startswith("demo")
    }


def test_the_table_is_light():
    script = """
import sys
import slca_fast.datasets
assert not {"torch", "numpy", "PIL", "slca_fast.data"} & set(sys.modules)
import slca_fast.data.prepare
loaded = {name for name in sys.modules if name.startswith("slca_fast.data.prepare.")}
assert loaded == {f"slca_fast.data.prepare.{name}" for name in ("place", "sound", "unpack")}
"""
    subprocess.run([sys.executable, "-c", script], check=True)


TOY_PREPARER = """
from slca_fast.data.prepare.place import Job, Progress, finish
from slca_fast.datasets import DATASETS


def prepare_toy(source, root, *, colour: str = "red", progress: Progress | None = None):
    jobs = [Job(f"{split}/{c}/0.png", source / "0.png") for split in ("train", "test") for c in "ab"]
    return finish("toy", root, jobs, expected=DATASETS["toy"].counts, options={"colour": colour}, progress=progress)
"""
TOY_ROW = """
import sys
from slca_fast.datasets import DATASETS, Dataset, RecipeSpec, Training

DATASETS["toy"] = Dataset(
    "Toys", 2, 2, 2, side=16.0, preparer="toy_preparer:prepare_toy", recipe=RecipeSpec("none", flip=True),
    training=Training(classes_per_task=1, temperature=0.3),
)
from slca_fast.cli import main

for call in sys.argv[1:]:
    print(f"exit {main(call.split())}")
"""


@pytest.mark.slow
def test_a_new_data_set_is_one_row_and_one_preparer(tmp_path):
    (tmp_path / "toy_preparer.py").write_text(TOY_PREPARER)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/0.png").write_bytes(b"not opened by this preparer")
    calls = {
        "presets": "presets toy",
        "usage": "prepare --help",
        "prepare": "prepare toy --source source --root toys --colour blue",
        "synthetic": "prepare synthetic --like toy --root made --scale 1",
        "configuration": "train slcapp-toy-in21k --print-config",
        "recipe": "train demo --data.recipe toy --print-config",
        "misspelt": "train demo --data.recipe tyo",
    }
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", TOY_ROW, *calls.values()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    parts = re.split(r"^exit (\d)\n", done.stdout, flags=re.MULTILINE)
    output, codes = dict(zip(calls, parts[::2])), parts[1::2]
    assert codes == ["0"] * 6 + ["2"], done.stdout + done.stderr
    assert {line.split()[0] for line in output["presets"].splitlines()} >= {"joint-toy-in21k", "slcapp-toy-mocov3"}
    assert ",toy,folder,synthetic}" in output["usage"]
    assert "Toys: 2 train, 2 test images of 2 classes" in output["usage"]
    assert "toy: 2 train and 2 test images of 2 classes" in output["prepare"]
    assert '"colour": "blue"' in (tmp_path / "toys/prepared.json").read_text()
    # One image per class in test, but never fewer than two in train.
    assert "synthetic: 4 train and 2 test images of 2 classes" in output["synthetic"]
    assert "increment: 1\n" in output["configuration"] and "temperature: 0.3\n" in output["configuration"]
    assert "recipe: toy\n" in output["recipe"]
    assert "did you mean toy?" in done.stderr
