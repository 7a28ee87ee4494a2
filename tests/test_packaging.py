"""The sdist holds everything needed to build and to test; the wheel holds the package, and fits every Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".ci", "bench", "docs", "kernels", "slca_fast", "tests")
FILES = (
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CMakeLists.txt",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints-lowest.txt",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
)
MADE = ("__pycache__", "_native", "*.pyc", ".*cache")

pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools >= 77")


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, without what was built in place or linked for development."""
    copy = tmp_path / "tree"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns(*MADE))
    (copy / "slca_fast" / "kernels").unlink(missing_ok=True)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    return copy


def built(tree: Path, command: str, **environment: str) -> Path:
    """The one file that ``setup.py command`` makes."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", command],
        cwd=tree,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tree / "dist").iterdir()
    return path


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_sdist_and_wheel_hold_what_they_should(tree, tmp_path) -> None:
    sources = files_of(tree)
    modules = {f"slca_fast/{name}" for name in files_of(tree / "slca_fast")}
    modules |= {f"slca_fast/kernels/{name}" for name in files_of(tree / "kernels") if name.endswith(".py")}
    (tree / "kernels" / "_native").mkdir()
    (tree / "kernels" / "_native" / "libslca_native.so").touch()
    (tree / "slca_fast" / "kernels").symlink_to("../kernels")

    with tarfile.open(built(tree, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("slca_fast-*")
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in files_of(unpacked) if ".egg-info/" not in name} - made == sources

    wheel = built(unpacked, "bdist_wheel", SLCA_FAST_NO_NATIVE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == modules
        archive.extractall(tmp_path / "site")
    script = f"""
import importlib, pkgutil, slca_fast
assert slca_fast.__path__ == [{str(tmp_path / "site" / "slca_fast")!r}], slca_fast.__path__
for module in pkgutil.walk_packages(slca_fast.__path__, "slca_fast."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("c++") is None, reason="no CMake or C++ compiler")
def test_the_wheel_with_the_native_library_names_the_platform_alone(tree) -> None:
    wheel = built(tree, "bdist_wheel", SLCA_FAST_NO_NATIVE="")
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none") and platform != "any"
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("slca_fast/kernels/_native/")]


def test_the_oldest_versions_that_are_tested_are_the_ones_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    bounds = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", line)[0] for line in declared if ">=" in line)
    pinned = dict(line.split("==") for line in (ROOT / "constraints-lowest.txt").read_text().split())
    assert pinned.keys() == bounds.keys()
    for name, version in pinned.items():
        assert version == bounds[name] or version.startswith(f"{bounds[name]}.0"), name
