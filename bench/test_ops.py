"""Every op on realistic shapes: ``pytest bench --benchmark-only``. ``slca-fast bench --suite ops`` has the ratios."""

from __future__ import annotations

import pytest
import torch

from slca_fast.benchmark import machine
from slca_fast.benchmark.ops import check_against_reference, step, usable_backends
from slca_fast.ops.registry import all_ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cases():
    for name, spec in all_ops().items():
        for index, sample in enumerate(spec.benchmark_samples(torch.device("meta"), torch.float32)):
            for backend in (*spec.backends[DEVICE.type], "eager"):
                yield pytest.param(spec, index, backend, id=f"{name}-{sample.label}-{backend}")


@pytest.mark.parametrize(("spec", "index", "backend"), list(cases()))
def test_op(benchmark, spec, index, backend):
    sample = list(spec.benchmark_samples(DEVICE, torch.float32))[index]
    if backend == "eager":
        run = step(spec.reference, sample)
    else:
        if backend not in usable_backends(spec, sample, DEVICE):
            pytest.skip(f"{backend} cannot run here, or is eager")
        check_against_reference(spec, backend, sample, torch.float32)
        run = step(spec.function, sample, backend=backend)

    def synchronised():
        result = run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.pedantic(synchronised, rounds=5, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    if spec.bytes_moved is not None:
        rate = spec.bytes_moved(sample) / seconds
        benchmark.extra_info["achieved_GB_per_s"] = rate / 1e9
        benchmark.extra_info["fraction_of_copy_bandwidth"] = rate / machine.copy_bytes_per_second(DEVICE)
    if spec.flops is not None:
        rate = spec.flops(sample) / seconds
        benchmark.extra_info["achieved_GFLOP_per_s"] = rate / 1e9
        benchmark.extra_info["fraction_of_matmul_peak"] = rate / machine.matmul_flops_per_second(DEVICE, torch.float32)
