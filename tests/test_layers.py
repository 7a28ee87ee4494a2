"""Imports point one way (docs/architecture.md has the picture); importing the package touches nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from draw_architecture import ROOT, files, imports, room

LAYERS = (
    {"errors", "bounded", "files", "seeds"},
    {"kernels"},
    {"ops"},
    {"config", "config_file", "datasets", "tasks", "metrics", "embedded", "machine"},
    {"model", "data"},
    {"training"},
    {"methods"},
    {"runs"},
    {"experiment", "export", "report"},
    {"integrations", "benchmark"},
    {"cli"},
    {"__init__", "__main__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ALONE = {
    "errors": set(),
    "bounded": {"errors"},
    "datasets": set(),
    "config": {"errors", "datasets"},
    "tasks": {"errors"},
    "metrics": set(),
    "kernels": set(),
}


def wrong_imports(module: str, path: Path) -> list[str]:
    own = room(module)
    wrong = []
    for line, name in imports(module, path):
        other = room(name)
        if own == other:
            continue
        if other not in RANK:
            wrong.append(f"{module}:{line} imports {name}: LAYERS does not place {other}")
        elif RANK[other] > RANK[own] or (own in ALONE and other not in ALONE[own]):
            wrong.append(f"{module}:{line} ({own}) imports {name} ({other})")
    return wrong


def test_imports_point_one_way():
    assert not [line for module, path in files() for line in wrong_imports(module, path)]


def test_every_module_has_a_place():
    assert {room(module) for module, _ in files()} == set(RANK)


def test_the_check_sees_a_wrong_import(tmp_path):
    path = tmp_path / "optim.py"
    path.write_text("def f():\n    from ..methods.gaussians import ClassGaussians\n")
    assert wrong_imports("slca_fast.training.optim", path)
    path.write_text("from slca_fast.newcomer import x\n")
    assert wrong_imports("slca_fast.training.optim", path)


def test_nothing_imports_a_top_level_kernels_package():
    for _, path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "kernels" for alias in node.names), path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != "kernels", path


OPS = "slca_fast.ops.symmetric_cross_entropy, slca_fast.ops.lora_linear"


@pytest.mark.slow
@pytest.mark.parametrize("modules", ("slca_fast", f"slca_fast, {OPS}"))
def test_import_initialises_no_cuda_and_seeds_nothing(modules):
    script = f"""
import os, random
import numpy, torch
state = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist(), os.environ.copy()
threads = torch.get_num_threads()
import {modules}
assert not torch.cuda.is_initialized()
assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
assert state[2] == numpy.random.get_state()[1].tolist() and state[3] == os.environ.copy()
assert threads == torch.get_num_threads()
import sys
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_reads_no_environment_and_stays_light():
    script = """
import os, sys
class Watched(dict):
    def get(self, key, default=None): raise AssertionError(key)
    def __getitem__(self, key): raise AssertionError(key)
    def __contains__(self, key): raise AssertionError(key)
real, os.environ, os.getenv = os.environ, Watched(), None
import slca_fast
os.environ = real
assert "torch" not in sys.modules and "triton" not in sys.modules and "timm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_class_is_over_300_lines_and_the_main_file_stays_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for _, path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= 300
    ]
    assert not long
    assert len((ROOT / "slca_fast" / "experiment.py").read_text().splitlines()) < 250
