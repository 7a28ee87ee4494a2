"""Builds the wheel: pure Python, plus the native CPU library when a C++ compiler is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake; without a working compiler it says so and leaves the pure-Python package."""

    def build_extension(self, ext: Extension) -> None:
        if os.environ.get("SLCA_FAST_NO_NATIVE") == "1":
            print("slca_fast: native library skipped (SLCA_FAST_NO_NATIVE=1)", file=sys.stderr)
            return
        in_tree = self.inplace or getattr(self, "editable_mode", False)
        target = ROOT / "kernels" if in_tree else Path(self.build_lib).resolve() / "slca_fast" / "kernels"
        build_dir = Path(self.build_temp).resolve() / "native"
        build_dir.mkdir(parents=True, exist_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        try:
            subprocess.run(
                [
                    "cmake",
                    *generator,
                    "-S",
                    str(ROOT),
                    "-B",
                    str(build_dir),
                    "-DCMAKE_BUILD_TYPE=Release",
                    f"-DSLCA_NATIVE_OUTPUT={target / '_native'}",
                ],
                check=True,
            )
            subprocess.run(["cmake", "--build", str(build_dir), "--parallel", "2"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(
                f"slca_fast: native library not built ({error}); the Python backends are used instead", file=sys.stderr
            )

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def copy_extensions_to_source(self) -> None:
        """CMake wrote the library where it belongs already."""


class Wheel(bdist_wheel):
    """One wheel for every Python: the native library is loaded with ctypes, so only the platform matters."""

    def get_tag(self) -> tuple[str, str, str]:
        build = self.get_finalized_command("build")
        native = list((Path(build.build_lib) / "slca_fast" / "kernels" / "_native").glob("lib*"))
        return "py3", "none", super().get_tag()[2] if native else "any"


setup(
    packages=[
        *find_packages(str(ROOT), include=["slca_fast", "slca_fast.*"], exclude=["slca_fast.kernels*"]),
        "slca_fast.kernels",
        *(f"slca_fast.kernels.{name}" for name in find_packages(str(ROOT / "kernels"))),
    ],
    package_dir={"slca_fast": "slca_fast", "slca_fast.kernels": "kernels"},
    # What MANIFEST.in lists for the sdist (C++ sources) is no use in a wheel.
    include_package_data=False,
    package_data={
        "slca_fast.report": ["templates/*.html.j2"],
        "slca_fast.embedded": ["*.safetensors", "*.json", "*.md"],
    },
    ext_modules=[Extension("slca_fast.kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
