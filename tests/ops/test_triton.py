"""Triton kernels without a GPU: the contract in the interpreter, and compilation for CUDA ahead of time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_compiler import compile_for_hopper

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_contract_holds_in_the_interpreter():
    """One process for all ops: the interpreter must be chosen before triton is imported."""
    from slca_fast.ops.registry import all_ops

    if not any("triton" in backend for spec in all_ops().values() for backend in spec.backends.values()):
        pytest.skip("no op has a Triton backend")
    # The interpreter takes seconds for an image.
    chosen = "triton and not inductor and not opcheck and not (augment and any_shape)"
    losses = map(str, (ROOT / "tests" / "ops").glob("test_*_cross_entropy.py"))
    contract = ["tests/ops/test_op_contract.py", "tests/ops/test_error_bounds.py"]
    files = [*contract, "tests/ops/test_augment.py", *losses]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", chosen],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize("dtype", ("fp32", "bf16", "fp16"))
@pytest.mark.parametrize("num_classes", (20, 1000, 21841, 50000))
def test_symmetric_cross_entropy_compiles_for_cuda(dtype, num_classes):
    from slca_fast.kernels.symmetric_cross_entropy import triton_kernel as module

    on_chip, block, num_warps = module.launch_shape(num_classes)
    name = "symmetric_cross_entropy_row_kernel" if on_chip else "symmetric_cross_entropy_long_row_kernel"
    compiled = compile_for_hopper(
        getattr(module, name),
        {
            "logits_ptr": f"*{dtype}", "target_ptr": "*i64", "scale_ptr": "*fp32", "loss_ptr": "*fp32",
            "gradient_ptr": f"*{dtype}",
        },
        {
            "logits_stride": "i32", "num_classes": "i32", "ce_weight": "fp32", "reverse_weight": "fp32",
            "floor": "fp32",
        },
        {"WITH_GRADIENT": True, "BLOCK": block},
        num_warps,
    )  # fmt: skip
    ptx = compiled.asm["ptx"]
    assert "ld.global" in ptx
    # registers spilled to local memory would read the row again
    assert "ld.local" not in ptx


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
def test_the_other_loss_kernels_compile_for_cuda():
    from slca_fast.kernels.row_loss import triton_kernel as row_loss
    from slca_fast.kernels.task_normalized_cross_entropy import triton_kernel as normalized

    compile_for_hopper(
        row_loss.scale_rows_kernel,
        {"gradient_ptr": "*bf16", "upstream_ptr": "*fp32"},
        {"upstream_stride": "i32", "num_classes": "i32"},
        {"BLOCK": 4096},
        8,
    )
    compile_for_hopper(
        normalized.task_norm_kernel,
        {"logits_ptr": "*bf16", "offset_ptr": "*i32", "norm_ptr": "*fp32"},
        {"logits_stride": "i32", "num_tasks": "i32"},
        {"BLOCK": 32},
        1,
    )
    compile_for_hopper(
        normalized.task_normalized_cross_entropy_kernel,
        {
            "logits_ptr": "*fp32", "target_ptr": "*i64", "scale_ptr": "*fp32", "norm_ptr": "*fp32",
            "task_of_class_ptr": "*i32", "loss_ptr": "*fp32", "gradient_ptr": "*fp32",
        },
        {
            "logits_stride": "i32", "num_classes": "i32", "num_tasks": "i32", "temperature": "fp32",
            "norm_floor": "fp32",
        },
        {"WITH_GRADIENT": True, "BLOCK": 256, "TASK_BLOCK": 16},
        1,
    )  # fmt: skip
