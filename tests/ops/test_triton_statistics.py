"""The Triton kernels of the class statistics: in the interpreter, and compiled for CUDA ahead of time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_compiler import compile_for_hopper

from slca_fast.kernels import triton_runtime
from slca_fast.kernels.gaussian_sampling.philox import philox_normal_reference
from slca_fast.ops.class_moments import class_moments

ROOT = Path(__file__).resolve().parents[2]
interpreted = pytest.mark.skipif(not triton_runtime.interpreted(), reason="test_in_the_interpreter runs it")
compiled = pytest.mark.skipif(triton_runtime.interpreted(), reason="the interpreter does not compile")


@compiled
def test_in_the_interpreter():
    """One process: the interpreter must be chosen before triton is imported."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0 and "passed" in result.stdout, result.stdout[-6000:] + result.stderr[-2000:]


@interpreted
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("sizes", "dim"), [((0, 1, 70, 2, 0, 33), 19), ((40, 3), 300), ((1,), 1), ((0, 0), 5)])
def test_moments_match_float64(sizes, dim, dtype, precision):
    generator = torch.Generator().manual_seed(dim)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(sum(sizes), generator=generator)]
    features = (torch.randn(sum(sizes), dim, generator=generator) + 50).to(dtype)
    truth = class_moments(features, labels, len(sizes), "reference")
    with torch.no_grad():
        ours = class_moments(
            features, labels, len(sizes), "triton", accumulate_dtype=torch.float32, input_precision=precision
        )
    assert torch.equal(ours.count_C, truth.count_C)
    torch.testing.assert_close(ours.mean_CD.double(), truth.mean_CD, rtol=1e-7, atol=1e-7)
    for c, count in enumerate(sizes):
        if count < 2:
            assert not ours.scatter_CDD[c].any()
        else:
            error = (ours.scatter_CDD[c] - truth.scatter_CDD[c]).norm() / truth.scatter_CDD[c].norm()
            assert error <= 1e-6


@interpreted
@pytest.mark.parametrize(("num_classes", "num_samples", "num_dims"), [(3, 5, 1), (2, 7, 130), (1, 2, 1100), (2, 0, 4)])
def test_normals_match_the_reference(num_classes, num_samples, num_dims):
    from slca_fast.kernels.gaussian_sampling.triton_kernel import philox_normal_triton

    args = (torch.tensor([-(2**62) - 5]), torch.arange(num_classes) * 7, num_samples, num_dims, 1, 3)
    torch.testing.assert_close(philox_normal_triton(*args), philox_normal_reference(*args), rtol=1e-5, atol=2e-6)


@compiled
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("dim", [16, 192, 768])
def test_moments_compile_for_cuda(dim, dtype, precision):
    from slca_fast.kernels.class_moments import triton_kernel as module

    tile, num_rows, num_warps = module.tile_shape(dim)
    pointers = {"features_ptr": f"*{dtype}", "order_ptr": "*i64", "offset_ptr": "*i64", "mean_ptr": "*fp32",
                "correction_ptr": "*fp32"}  # fmt: skip
    scalars = {"row_stride": "i32", "dim": "i32"}
    block = {"ROWS": module.MEAN_ROWS, "COLUMNS": module.MEAN_COLUMNS}
    compile_for_hopper(module.class_moments_mean_kernel, pointers, scalars, block, 4)
    scatter = compile_for_hopper(
        module.class_moments_fwd_kernel, pointers | {"scatter_ptr": "*fp32"}, scalars,
        {"ROWS": num_rows, "TILE": tile, "PRECISION": precision}, num_warps,
    )  # fmt: skip
    assert ("mma" in scatter.asm["ptx"]) == (precision == "tf32x3")
    assert "ld.local" not in scatter.asm["ptx"]


@compiled
def test_normals_compile_for_cuda():
    from slca_fast.kernels.gaussian_sampling import triton_kernel as module

    normals = compile_for_hopper(
        module.gaussian_sampling_fwd_kernel,
        {"seed_ptr": "*i64", "class_id_ptr": "*i64", "out_ptr": "*fp32"},
        {"num_samples": "i32", "num_dims": "i32", "stream": "i32", "sample_offset": "i32"},
        {"BLOCK": module.BLOCK_QUADS},
        4,
    )
    assert "ld.local" not in normals.asm["ptx"]
