"""The short form of the suite on lesser processors, without the native library and on two threads.

Each group of settings is a process of its own: the variables must be set before the interpreter starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slca_fast.kernels import native

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
    "SLCA_FAST_NATIVE_ISA",
    "SLCA_FAST_NO_NATIVE",
)
SETTINGS = {
    "lowest": {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "SLCA_FAST_NATIVE_ISA": "generic"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2", "SLCA_FAST_NATIVE_ISA": "avx2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "SLCA_FAST_NATIVE_ISA": "avx512"},
    "no native library": {"SLCA_FAST_NO_NATIVE": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}
# What the processor has, whatever this process is held to.
HAS = {"avx2": torch.cpu._is_avx2_supported(), "avx512": torch.cpu._is_avx512_supported()}
SELECTION = (
    "tests/machine/test_settings.py::test_this_process_obeys_its_variables",
    "tests/ops/test_op_contract.py::test_every_result_is_as_near_to_the_truth_as_its_arithmetic_allows",
    "tests/methods/test_alignment.py",
    "tests/methods/test_alignment_steps.py",
    "tests/test_experiment.py::test_a_stop_anywhere_then_resume_gives_the_same_weights[7]",
)


def run(setting: dict[str, str], *command: str) -> str:
    """The output of ``python command`` with one thread and nothing set but ``setting``."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"} | setting,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_this_process_obeys_its_variables() -> None:
    if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
        assert torch.backends.cpu.get_cpu_capability() == capability.upper()
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    if os.environ.get("SLCA_FAST_NO_NATIVE") == "1":
        assert not native.available() and "SLCA_FAST_NO_NATIVE" in str(native.why_not())
    elif native.available():
        assert native.isa() == os.environ.get("SLCA_FAST_NATIVE_ISA", native.isa())


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_ops_alignment_and_a_resumed_run(name: str) -> None:
    if not HAS.get(name, True):
        pytest.skip(f"this processor has no {name}")
    output = run(SETTINGS[name], "-m", "pytest", "-p", "no:cacheprovider", *SELECTION)
    assert "1 failed" not in output and "100%" in output, output


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
@pytest.mark.parametrize(
    "setting, said",
    [
        ({}, "yes, on "),
        ({"SLCA_FAST_NATIVE_ISA": "generic"}, "yes, on generic: held there by SLCA_FAST_NATIVE_ISA"),
        ({"SLCA_FAST_NATIVE_ISA": "avx1024"}, "no: SLCA_FAST_NATIVE_ISA=avx1024 is no instruction set"),
        ({"SLCA_FAST_NO_NATIVE": "1"}, "no: SLCA_FAST_NO_NATIVE=1 keeps it out"),
    ],
)
def test_doctor_says_what_the_native_library_runs_on(setting: dict[str, str], said: str) -> None:
    findings = json.loads(run(setting, "-m", "slca_fast", "doctor", "--json"))
    assert findings["fast paths"]["native CPU library"].startswith(said)
    backend = "native" if said.startswith("yes") else "reference"
    assert findings["ops"]["augment"].startswith(backend)
