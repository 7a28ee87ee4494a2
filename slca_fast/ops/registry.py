"""The table of ops: the contract test and the benchmark iterate over it, so adding an op adds its tests."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from slca_fast.kernels import native
from slca_fast.kernels.compiler import constant_to_the_compiler

BACKENDS = ("auto", "reference", "triton", "native")


@dataclass(frozen=True)
class Sample:
    """One set of inputs of an op: what the contract test feeds it and what the benchmark times."""

    label: str
    """A short name of the shape, e.g. ``"128x1000"``."""
    args: tuple[Any, ...]
    """Positional arguments; floating-point tensors that require grad are differentiated."""
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpSpec:
    """Everything the contract test and the benchmark need to know about one op."""

    name: str
    function: Callable[..., Any]
    """The public function; takes ``backend=``."""
    reference: Callable[..., Any]
    """The equation in plain torch (kernels/<op>/reference.py); run in float64 it is the truth."""
    backends: dict[str, tuple[str, ...]]
    """Device type -> backends in the order in which ``auto`` prefers them. ``reference`` can always run, so what
    comes after it (triton on the CPU, which needs the interpreter) runs on request only."""
    samples: Callable[[torch.device, torch.dtype], Iterator[Sample]]
    """Small ragged, empty, one-row and unequal shapes for the contract test."""
    benchmark_samples: Callable[[torch.device, torch.dtype], Iterator[Sample]]
    """Realistic shapes for the benchmark."""
    error_bound: Callable[..., tuple[list[torch.Tensor], list[torch.Tensor]]]
    """(upstream gradients, *args, **kwargs of a sample) -> how far each element of every output and of every gradient
    may be from the float64 truth on any processor: float64 tensors of their shapes (kernels/<op>/error_bound.py).

    It follows from the shapes and the inputs alone: units in the last place of the dtype that sums, times the number of
    terms summed, times the sum of the terms' sizes; exp and log a few units, and exp as many of its argument; then the
    rounding to the dtype of the result. Nothing in it is measured, so no processor's luck is."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    error_margin: float = 2.0
    """What is allowed besides: this multiple of same-dtype eager's own largest error, where that is more."""
    bytes_moved: Callable[[Sample], int] | None = None
    """Least device-memory traffic of one forward+backward, for achieved bandwidth."""
    flops: Callable[[Sample], int] | None = None
    """Arithmetic of one forward+backward, for achieved FLOP/s."""
    baselines: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Other implementations to time beside ours (a library's best), called like ``function``."""


REGISTRY: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Enters ``spec`` in the table; a name can be entered once."""
    assert spec.name not in REGISTRY, spec.name
    REGISTRY[spec.name] = spec
    return spec


def choose_backend(name: str, requested: str, device: torch.device, **unusable: str | None) -> str:
    """The backend that runs op ``name`` on ``device``.

    ``unusable`` maps a backend to the reason why it cannot serve this call (None: it can). ``auto`` takes the first
    usable backend of the op's order; an explicit choice that cannot be met raises ValueError with the reason.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {requested!r}")
    order = REGISTRY[name].backends.get(device.type, ("reference",))
    if requested == "auto":
        return next(backend for backend in order if unusable.get(backend) is None)
    if requested not in order:
        choices = ", ".join(order)
        raise ValueError(f"{name}: backend {requested!r} does not run on {device.type}; choose from {choices}")
    if unusable.get(requested) is not None:
        raise ValueError(f"{name}: backend {requested!r} cannot be used: {unusable[requested]}")
    return requested


def late_op(name: str, define: Callable[[str], None]) -> Callable[..., Any]:
    """The op ``slca_fast::<name>``, which ``define``, called with that full name, registers at the first call.

    For torch.library.triton_op: it imports the compiler (seconds, and environment variables set), which importing
    one of our modules must not.
    """
    lock = threading.Lock()
    defined = False

    @constant_to_the_compiler
    def ensure_defined() -> None:
        nonlocal defined
        with lock:
            if not defined:
                define(f"slca_fast::{name}")
                defined = True

    def call(*args: Any) -> Any:
        ensure_defined()
        return getattr(torch.ops.slca_fast, name).default(*args)

    return call


def all_ops() -> dict[str, OpSpec]:
    """The whole table: imports every module of slca_fast.ops, each of which registers its op."""
    package = importlib.import_module("slca_fast.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return REGISTRY


def automatic_backends(device: torch.device) -> dict[str, tuple[str, str]]:
    """What ``auto`` takes for every op and float32 inputs on ``device``, and why nothing that is preferred to it."""
    chosen = {}
    for name, spec in sorted(all_ops().items()):
        order = spec.backends.get(device.type, ("reference",))
        usable = [b for b in order if b != "native" or native.available()]
        missing = "" if "native" not in order or native.available() else f"; native is out: {native.why_not()}"
        chosen[name] = (usable[0], f"first of {', '.join(order)}{missing}")
    return chosen
