"""Makes the source tree run where nothing of it is installed: import paths, carried wheels, environment variables.

To be called before torch or Triton is imported. What it sets, processes started later inherit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED_MODULES = ("msgspec", "jsonargparse", "rich", "hypothesis", "pytest_timeout")
SCIENCE_MODULES = ("scipy", "matplotlib")
"""What the package and its tests import that a machine with torch, timm and pytest may lack; carry.py brings it."""
CARRIED = ROOT / ".carry"
"""Where carry.py puts wheels and their parts; git ignores it."""


def temporary(name: str) -> Path:
    """A folder of this user's on this machine, made when it is needed."""
    return Path(tempfile.gettempdir()) / f"slca-ladder-{os.getuid()}" / name


def prepare(dry: bool) -> None:
    """Import paths and variables. ``dry``: on the CPU, Triton's kernels interpreted, torch.compile passed through."""
    link_kernels()
    # Ours before anything installed; what was carried last, so that the machine's own packages win.
    ours = [str(ROOT), str(ROOT / "bench" / "gpu")]
    site = unpacked_wheels([*sorted(CARRIED.glob("*/*.whl")), *sorted(temporary("wheels").glob("*/*.whl"))])
    carried = [] if site is None else [str(site)]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [path for path in before if path and path not in ours + carried]
    os.environ["PYTHONPATH"] = os.pathsep.join([*ours, *others, *carried])
    sys.path[:] = [*ours, *(path for path in sys.path if path not in ours + carried), *carried]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if dry:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}


def link_kernels() -> None:
    """``kernels/`` as ``slca_fast.kernels``, as setup.py installs it, where neither an installation nor a link does."""
    link = ROOT / "slca_fast" / "kernels"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to("../kernels")


def unpacked_wheels(wheels: list[Path]) -> Path | None:
    """One folder with the contents of the wheels, made at the first call; None without wheels."""
    if not wheels:
        return None
    names = "\n".join(f"{wheel.name} {wheel.stat().st_size}" for wheel in wheels)
    site = temporary("site") / hashlib.sha256(names.encode()).hexdigest()[:16]
    done = site / ".unpacked"
    if not done.exists():
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        done.touch()
    return site


def missing_modules(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that cannot be imported here."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def source_sha256() -> str:
    """Of every source file that a measurement depends on, in the order of their names."""
    digest = hashlib.sha256()
    for folder in ("kernels", "slca_fast", "bench"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h") and path.is_file():
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
