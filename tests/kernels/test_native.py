"""The native library: loading, one OpenMP runtime, every instruction set, sanitizers, wheels without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from slca_fast.kernels import native
from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy
from slca_fast.ops.task_normalized_cross_entropy import task_normalized_cross_entropy

ROOT = Path(__file__).resolve().parents[2]
needs_library = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("c++") or os.environ.get("CXX"))), reason="no C++ compiler or CMake"
)


def run_python(script: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@needs_library
def test_one_openmp_runtime_is_loaded():
    script = """
from slca_fast.kernels import native
assert native.available()
import torch
from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy
symmetric_cross_entropy(torch.randn(64, 1000), torch.arange(64), backend="native")
paths = {line.split()[-1] for line in open("/proc/self/maps")}
print(*sorted(p for p in paths if "gomp" in p or "iomp" in p or "libomp" in p))
"""
    libraries = run_python(script).split()
    assert len(libraries) == 1, libraries


@pytest.mark.slow
def test_without_the_library_auto_falls_back_and_an_explicit_choice_says_why():
    script = """
import torch
from slca_fast.kernels import native
from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy
assert not native.available() and "/nowhere" in native.why_not() and native.isa() is None
z, y = torch.randn(2, 3), torch.tensor([0, 1])
assert symmetric_cross_entropy(z, y).isfinite()
try:
    symmetric_cross_entropy(z, y, backend="native")
except ValueError as error:
    print(error)
"""
    assert "/nowhere" in run_python(
        script, SLCA_FAST_NATIVE_LIBRARY="/nowhere/libslca_native.so", SLCA_FAST_NO_NATIVE=""
    )


@needs_library
def test_a_library_of_another_version_is_refused(monkeypatch):
    native._load.cache_clear()
    monkeypatch.setattr(native, "ABI_VERSION", native.ABI_VERSION + 1)
    try:
        assert not native.available() and "interface version" in native.why_not()
    finally:
        native._load.cache_clear()


@needs_library
def test_a_library_held_to_an_instruction_set_goes_no_higher():
    script = """
from slca_fast.kernels import native
print(native.isa(), native.set_isa("avx512bf16"), native.isa())
"""
    assert run_python(script, SLCA_FAST_NATIVE_ISA="generic").split() == ["generic"] * 3


@needs_library
@pytest.mark.parametrize(
    ("name", "reason"), [("avx2048", "beyond this processor"), ("AVX2", "no instruction set: set it to one of generic")]
)
def test_an_instruction_set_that_cannot_be_is_refused_aloud(monkeypatch, name, reason):
    monkeypatch.setattr(native, "ISA_NAMES", (*native.ISA_NAMES, "avx2048"))
    monkeypatch.setenv("SLCA_FAST_NATIVE_ISA", name)
    caches = (native._load, native.held_isa)
    for cached in caches:
        cached.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=reason):
            assert not native.available()
        assert reason in native.why_not()
    finally:
        for cached in caches:
            cached.cache_clear()


@needs_library
@pytest.mark.parametrize("isa", native.ISA_NAMES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_every_instruction_set_computes_the_same(isa, dtype):
    best = native.isa()
    if native.ISA_NAMES.index(isa) > native.ISA_NAMES.index(best):
        pytest.skip(f"this machine has no {isa}")
    generator = torch.Generator().manual_seed(0)
    for num_rows, num_classes, spread in ((7, 1, 1), (7, 15, 3), (7, 16, 3), (5, 333, 12), (3, 5000, 4)):
        logits_BC = (torch.randn(num_rows, num_classes, generator=generator) * spread).to(dtype).requires_grad_()
        target_B = torch.randint(num_classes, (num_rows,), generator=generator)
        sizes = [num_classes - num_classes // 3, *([num_classes // 3] if num_classes >= 3 else [])]
        for loss in (
            lambda z, y, backend: symmetric_cross_entropy(z, y, backend=backend),
            lambda z, y, backend, sizes=sizes: task_normalized_cross_entropy(z, y, sizes, 0.1, backend),
        ):
            expected = loss(logits_BC, target_B, "reference")
            (expected_gradient,) = torch.autograd.grad(expected, logits_BC)
            native.set_isa(isa)
            try:
                ours = loss(logits_BC, target_B, "native")
            finally:
                native.set_isa(best)
            (gradient,) = torch.autograd.grad(ours, logits_BC)
            torch.testing.assert_close(ours, expected)
            torch.testing.assert_close(gradient, expected_gradient)


@needs_library
def test_results_do_not_depend_on_the_number_of_threads():
    logits_BC = torch.randn(67, 1000, requires_grad=True)
    target_B = torch.randint(1000, (67,))
    threads = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            loss = symmetric_cross_entropy(logits_BC, target_B, reduction="none", backend="native")
            results.append((loss, *torch.autograd.grad(loss.sum(), logits_BC)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@needs_library
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_only_the_c_interface_is_exported():
    path = os.environ.get("SLCA_FAST_NATIVE_LIBRARY") or native.DEFAULT_LIBRARY
    listing = subprocess.run(["nm", "-D", "--defined-only", str(path)], check=True, capture_output=True, text=True)
    names = [line.split()[-1] for line in listing.stdout.splitlines()]
    assert names and all(name.startswith("slca_") or name in ("_init", "_fini") for name in names), names


def cmake(build: Path, *options: str) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", *generator, "-S", str(ROOT), "-B", str(build), f"-DSLCA_NATIVE_OUTPUT={build}/out", *options]
    for command in (configure, ["cmake", "--build", str(build), "--parallel", "2"]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.mark.slow
@needs_compiler
def test_cores_under_sanitizers(tmp_path):
    cmake(tmp_path, "-DSLCA_NATIVE_TESTS=ON", "-DSLCA_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug",
          "-DCMAKE_CXX_FLAGS_DEBUG=-O1")  # fmt: skip
    ctest = ["ctest", "--test-dir", str(tmp_path), "--output-on-failure"]
    result = subprocess.run(ctest, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "100% tests passed" in result.stdout


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_instruction_sets_share_no_inline_function(tmp_path):
    """The linker merges weak symbols of one name: an AVX-512 copy would then run on every machine."""
    cmake(tmp_path)
    objects = [p for p in tmp_path.rglob("*.o") if "slca_avx" in str(p) or "slca_generic" in str(p)]
    assert objects
    for path in objects:
        listing = subprocess.run(["nm", "-C", "--defined-only", str(path)], check=True, capture_output=True, text=True)
        weak = [line for line in listing.stdout.splitlines() if line.split()[1] in "WVu"]
        assert not weak, (path, weak)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ("works", "fails"))
def test_wheel_builds_with_and_without_a_compiler(tmp_path, compiler):
    if compiler == "works" and not (shutil.which("c++") and shutil.which("cmake")):
        pytest.skip("no C++ compiler or CMake")
    source = tmp_path / "source"
    made_here = (".git", ".venv", "build", "runs", "_native", "*.egg-info", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*made_here))
    environment = os.environ | {"SLCA_FAST_NO_NATIVE": ""} | ({"CXX": "/bin/false"} if compiler == "fails" else {})
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-build-isolation", "--no-deps", "-q"]
    subprocess.run([*build, "-w", str(tmp_path)], check=True, env=environment, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "slca_fast/kernels/symmetric_cross_entropy/reference.py" in names
    assert ("slca_fast/kernels/_native/libslca_native.so" in names) == (compiler == "works")
