"""Every op in the table against eager torch, torch.compile and its libraries' best, in one interleaved run.

A row is ``{suite, name, shape, dtype, backend, baseline, median_ms, baseline_median_ms, ratio, ratio_min, ratio_max, n,
achieved, unit, fraction_of_peak, peak_memory_bytes}``; ``ratio`` is baseline time over our time. Forward and backward
are timed together; an op that disagrees with its reference is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..ops.registry import OpSpec, Sample, all_ops
from . import machine
from .timing import interleaved

EAGER, COMPILED = "eager", "torch.compile"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.float64: 1e-9}


class Disagreement(Exception):
    """An op's result is not its reference's: the message names the op, backend and sample."""


def usable_backends(spec: OpSpec, sample: Sample, device: torch.device) -> list[str]:
    """The backends that can serve ``sample``, but for the reference where there is another."""
    found = []
    for backend in spec.backends.get(device.type, ("reference",)):
        try:
            spec.function(*sample.args, **sample.kwargs, backend=backend)
        except ValueError as error:
            if f"backend {backend!r} cannot be used" not in str(error):
                raise
            continue
        found.append(backend)
    return [backend for backend in found if backend != "reference"] or found


def step(function: Callable[..., Any], sample: Sample, **extra: Any) -> Callable[[], list[torch.Tensor]]:
    """Forward and, where inputs require it, backward of ``function`` on ``sample``: outputs, then gradients.

    The upstream gradient of a scalar is 1, as in training; otherwise it is a fixed random tensor.
    """
    leaves = [tensor for tensor in _tensors((sample.args, sample.kwargs)) if tensor.requires_grad]
    upstream: list[torch.Tensor] = []

    def run() -> list[torch.Tensor]:
        outputs = _tensors(function(*sample.args, **sample.kwargs, **extra))
        differentiable = [output for output in outputs if output.requires_grad]
        if not leaves or not differentiable:
            return outputs
        if not upstream:
            generator = torch.Generator().manual_seed(0)
            for output in differentiable:
                random = torch.randn(output.shape, generator=generator).to(output)
                upstream.append(random if output.dim() else torch.ones_like(output))
        return [*outputs, *torch.autograd.grad(differentiable, leaves, upstream)]

    return run


def check_against_reference(spec: OpSpec, backend: str, sample: Sample, dtype: torch.dtype) -> None:
    """Raises Disagreement unless every output and gradient is the reference's, relative to its largest element."""
    ours = step(spec.function, sample, backend=backend)()
    expected = step(spec.reference, sample)()
    for index, (a, b) in enumerate(zip(ours, expected, strict=True)):
        if a.numel() == 0:
            continue
        error = (a.detach().double() - b.detach().double()).abs().max().item()
        largest = b.detach().double().abs().max().item()
        if not error <= TOLERANCE[dtype] * max(largest, 1e-6):
            raise Disagreement(
                f"{spec.name} {backend} {sample.label}: result {index} is off by {error:.3g} of {largest:.3g}"
            )


def rows_of_sample(
    spec: OpSpec, sample: Sample, device: torch.device, dtype: torch.dtype, *, compiled: bool, budget_s: float
) -> Iterator[dict[str, Any]]:
    """Rows of one op on one sample: every usable backend against every baseline."""
    backends = usable_backends(spec, sample, device)
    for backend in backends:
        if backend != "reference":
            check_against_reference(spec, backend, sample, dtype)
    contenders = {backend: step(spec.function, sample, backend=backend) for backend in backends}
    baselines = {EAGER: step(spec.reference, sample)}
    if compiled:
        torch.compiler.reset()
        baselines[COMPILED] = step(torch.compile(spec.reference, dynamic=False), sample)
    baselines |= {name: step(function, sample) for name, function in spec.baselines.items()}
    timings = interleaved({**contenders, **baselines}, device, budget_s=budget_s)
    for backend in backends:
        median_ms = timings.median_ms(backend)
        achieved, unit, fraction = _achieved(spec, sample, device, dtype, median_ms)
        for baseline in baselines:
            ratio = timings.ratio(baseline, backend)
            yield {
                "suite": "ops",
                "name": spec.name,
                "shape": sample.label,
                "dtype": str(dtype).removeprefix("torch."),
                "backend": backend,
                "baseline": baseline,
                "median_ms": median_ms,
                "baseline_median_ms": timings.median_ms(baseline),
                "ratio": ratio.median,
                "ratio_min": ratio.least,
                "ratio_max": ratio.greatest,
                "n": ratio.n,
                "achieved": achieved,
                "unit": unit,
                "fraction_of_peak": fraction,
                "peak_memory_bytes": machine.peak_memory_of(contenders[backend], device),
            }


def run(
    device: torch.device,
    *,
    names: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    compiled: bool = True,
    budget_s: float = 4.0,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    on_problem: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Rows of all ops (or those of ``names``) on ``device``; ``on_row`` sees each as it comes.

    ``budget_s`` is the time spent on the rounds of one sample. An op that disagrees with its reference, or a sample
    that a compiler or the memory cannot take, is reported through ``on_problem`` and has no row.
    Raises ValueError for a name that is no op.
    """
    table = all_ops()
    unknown = set(names or ()) - set(table)
    if unknown:
        raise ValueError(f"no such op: {', '.join(sorted(unknown))}; choose from {', '.join(table)}")
    rows = []
    for name, spec in table.items():
        if names is not None and name not in names:
            continue
        for dtype in dtypes:
            if dtype not in spec.dtypes:
                continue
            for sample in spec.benchmark_samples(device, dtype):
                try:
                    for row in rows_of_sample(spec, sample, device, dtype, compiled=compiled, budget_s=budget_s):
                        rows.append(row)
                        on_row(row)
                except (Disagreement, RuntimeError, MemoryError) as error:
                    on_problem(f"{name} {sample.label} {dtype}: not measured: {str(error).splitlines()[0]}")
    return rows


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _achieved(
    spec: OpSpec, sample: Sample, device: torch.device, dtype: torch.dtype, median_ms: float
) -> tuple[float | None, str | None, float | None]:
    """Achieved rate, its unit and its fraction of the measured peak, for the resource that is used more."""
    candidates = []
    if spec.bytes_moved is not None:
        rate = spec.bytes_moved(sample) / (median_ms * 1e-3)
        candidates.append((rate / 1e9, "GB/s", rate / machine.copy_bytes_per_second(device)))
    if spec.flops is not None:
        rate = spec.flops(sample) / (median_ms * 1e-3)
        candidates.append((rate / 1e9, "GFLOP/s", rate / machine.matmul_flops_per_second(device, dtype)))
    return max(candidates, key=lambda candidate: candidate[2], default=(None, None, None))
