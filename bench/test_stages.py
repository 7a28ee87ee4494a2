"""Every stage of a run, the official way's and ours: ``pytest bench --benchmark-only``.

``slca-fast bench --suite stages`` has the ratios of one interleaved run. To refuse a slowdown: save a run with
``--benchmark-autosave``, later ``--benchmark-compare --benchmark-compare-fail=median:10%``.
"""

from __future__ import annotations

import pytest
import torch

from slca_fast.benchmark import machine
from slca_fast.benchmark.flops import gflop_of
from slca_fast.benchmark.run import make_images
from slca_fast.benchmark.stages import BASELINE, STAGES, stage_of
from slca_fast.machine.environment import pick_device

DEVICE = pick_device("auto")
WAYS = (BASELINE, "fp32", "bf16", *(("bf16, torch.compile",) if DEVICE.type == "cuda" else ()))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["slca", "slcapp"])
@pytest.mark.parametrize("name", STAGES)
def test_stage(benchmark, images, name, method, way):
    stage = stage_of(name, method, images, DEVICE, DEVICE.type == "cuda")
    if way not in stage.ways:
        pytest.skip("the alignment runs in fp32 always")

    def synchronised():
        stage.ways[way]()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=3, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["per_second"] = stage.num_images / seconds
    if stage.counts_flops:
        dtype = torch.bfloat16 if "bf16" in way else torch.float32
        gflop = gflop_of(stage.ways[way])
        benchmark.extra_info["gflop_per_image"] = gflop / stage.num_images
        peak = machine.matmul_flops_per_second(DEVICE, dtype)
        benchmark.extra_info["fraction_of_matmul_peak"] = gflop * 1e9 / seconds / peak
    if DEVICE.type == "cuda":
        benchmark.extra_info["peak_memory_bytes"] = machine.peak_memory_of(stage.ways[way], DEVICE)
