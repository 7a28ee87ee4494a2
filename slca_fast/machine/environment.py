"""The machine a run executes on: device, arithmetic, memory, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch

from slca_fast.errors import UserError

PACKAGES = (
    "slca-fast",
    "torch",
    "torchvision",
    "triton",
    "timm",
    "numpy",
    "pillow",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "apex",
)


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA when there is a device, else the CPU; raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--runtime.device {name}: no such device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--runtime.device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--runtime.device {name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            f"use --runtime.device cpu"
        )
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 on CUDA and fp32 on the CPU."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" else "fp32"


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: allocated device memory on CUDA, resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # getrusage counts what a parent held before it started this process.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes(device: torch.device) -> int:
    """All memory of ``device``, free or not: the GPU's, or the machine's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_room_for_threads(num_threads: int) -> None:
    """Raises UserError where their stacks pass a limit of address space: OpenMP would end the process."""
    limit, stack = resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_STACK)[0]
    if limit == resource.RLIM_INFINITY:
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # What the C library takes where the limit of a stack is infinite.
    each = 2**21 if stack == resource.RLIM_INFINITY else stack
    if num_threads * each > limit - used:
        raise UserError(
            f"--runtime.num_threads is {num_threads}: their stacks would take {num_threads * each / 2**30:.1f} GiB of "
            f"address space, `ulimit -v` leaves {max(0, limit - used) / 2**30:.1f}; give at most "
            f"{max(1, (limit - used) // each)}"
        )


def cache_folder() -> Path:
    """What may be lost: SLCA_FAST_CACHE, or slca_fast under XDG_CACHE_HOME or ~/.cache; else temporary."""
    if os.environ.get("SLCA_FAST_CACHE"):
        return Path(os.environ["SLCA_FAST_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "slca_fast"
    # A container's user may have neither HOME nor an entry in /etc/passwd, then "~" stays, or a home that is not there.
    home = Path(os.path.expanduser("~"))
    if home.is_absolute() and os.access(home, os.W_OK):
        return home / ".cache" / "slca_fast"
    return Path(tempfile.gettempdir()) / f"slca_fast-{os.getuid()}"


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_description(device: torch.device) -> str:
    """The device in words, e.g. ``NVIDIA H200`` or ``AMD EPYC (2 cores, AVX512)``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()} ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> dict[str, Any]:
    """What a benchmark file says about the machine it was made on."""
    device = pick_device("auto")
    return {
        "device": device_description(device),
        "cpu": _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
