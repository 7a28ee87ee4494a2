"""The sdist holds everything needed to build and to test; the wheel fits every Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "docs", "kernels", "slca_fast", "tests")
FILES = (
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
)
MADE = ("__pycache__", "_native", "*.pyc", ".*cache")

pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools >= 77")


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, without what was built in place."""
    copy = tmp_path / "tree"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*MADE))
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


@pytest.mark.slow
def test_the_sdist_holds_every_source_file(tree) -> None:
    expected = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    with tarfile.open(built(tree, "sdist")) as archive:
        found = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert expected - found == set()


@pytest.mark.slow
def test_the_wheel_is_for_every_python_and_only_the_package(tree) -> None:
    wheel = built(tree, "bdist_wheel", SLCA_FAST_NO_NATIVE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "slca_fast/kernels/native.py" in names and "slca_fast/report/templates/run.html.j2" in names
    assert not [name for name in names if name.endswith((".cpp", ".h", ".hpp")) or name.startswith("tests")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("c++") is None, reason="no CMake or C++ compiler")
def test_the_wheel_with_the_native_library_names_the_platform_alone(tree) -> None:
    wheel = built(tree, "bdist_wheel")
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none") and platform != "any"
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("slca_fast/kernels/_native/")]
