"""Imports point one way, as the picture in docs says; importing the package touches nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    {"errors", "files", "seeds"},
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
    "datasets": set(),
    "config": {"errors", "datasets"},
    "tasks": {"errors"},
    "metrics": set(),
    "kernels": set(),
}


def files() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "slca_fast").rglob("*.py")):
        yield "slca_fast." + ".".join(path.relative_to(ROOT / "slca_fast").with_suffix("").parts), path
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        yield "slca_fast.kernels." + ".".join(path.relative_to(ROOT / "kernels").with_suffix("").parts), path


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything of ours that ``path`` imports, inside functions too."""
    package = module.removesuffix(".__init__").split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "slca_fast":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            if base.split(".")[0] == "slca_fast":
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"


def layer(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def wrong_imports(module: str, path: Path) -> list[str]:
    own = layer(module)
    wrong = []
    for line, name in imports(module, path):
        other = layer(name)
        if own == other:
            continue
        if other not in RANK:
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: LAYERS does not place {other}")
        elif RANK[other] > RANK[own] or (own in ALONE and other not in ALONE[own]):
            wrong.append(f"{path.relative_to(ROOT)}:{line} ({own}) imports {name} ({other})")
    return wrong


def test_imports_point_one_way():
    assert not [line for module, path in files() for line in wrong_imports(module, path)]


def test_every_module_has_a_place():
    assert {layer(module) for module, _ in files()} == set(RANK)


def test_the_check_sees_a_wrong_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "slca_fast" / "training" / "optim.py"
    path.parent.mkdir(parents=True)
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
