"""Wheels for a machine without a network: fetched here, cut into parts that fit a call, joined there.

``carry.py fetch needed|science|dali [--python 3.12]`` downloads from PyPI into ``.carry/<set>/``, which git ignores; a
set larger than a part becomes ``.carry/<set>-00``, ``-01`` and so on. On the other machine the ladder finds
``.carry/<set>/*.whl`` by itself; parts come one a call: ``carry.py gather .carry/dali-00`` in the first, and so on. The
last one joins them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from environment import CARRIED, temporary

PART_BYTES = 51 * 2**20
"""One call may bring 64 MiB, the source tree included."""
SETS = {
    "needed": (
        "msgspec==0.22.0",
        "jsonargparse==4.53.0",
        "docstring-parser==0.18.0",
        "typeshed-client==2.15.0",
        "rich==15.0.0",
        "markdown-it-py==4.3.0",
        "mdurl==0.1.2",
        "Pygments==2.21.0",
        "hypothesis==6.170.17",
        "sortedcontainers==2.4.0",
        "pytest-timeout==2.4.0",
    ),
    "science": (
        "scipy==1.17.1",
        "matplotlib==3.11.2",
        "contourpy==1.3.3",
        "cycler==0.12.1",
        "fonttools==4.68.0",
        "kiwisolver==1.5.1",
        "pyparsing==3.3.3",
        "python-dateutil==2.9.0.post0",
        "six==1.17.0",
    ),
    "dali": (
        "nvidia-dali-cuda130==2.4.0",
        "nvidia-nvimgcodec-cu13==0.9.0.20",
        "nvidia-libnvcomp-cu13==5.3.0.16",
        "nvidia-nvjpeg==13.3.2.43",
        "astunparse==1.6.3",
        "gast==0.7.0",
        "libcst==1.9.0",
        "makefun==1.16.0",
        "nvtx==0.2.17",
        "optree==0.20.0",
        "six==1.17.0",
    ),
}
"""What may be missing beside torch, torchvision, Triton, timm, numpy, Pillow and pytest with pytest-benchmark. Without
"needed" no step runs; "science" is asked for by tests; DALI by the step that measures it."""
_GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_5")


def fetch(name: str, python: str, without: Sequence[str], into: Path = CARRIED) -> list[Path]:
    """The set's wheels for x86-64 Linux in ``into``: one folder, or parts. Returns the folders to carry."""
    folder = into / name
    for old in (folder, *into.glob(f"{name}-[0-9][0-9]")):
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = [package for package in SETS[name] if package.partition("==")[0].lower() not in without]
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in _GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    command += ["--implementation=cp", f"--python-version={python}", "-d", str(folder), *wanted]
    subprocess.run(command, check=True)
    if sum(wheel.stat().st_size for wheel in folder.iterdir()) <= PART_BYTES:
        return [folder]
    parts = cut(folder, into)
    shutil.rmtree(folder)
    return parts


def cut(folder: Path, into: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """The files of ``folder`` as numbered folders below ``into``, each with one part and the list of all."""
    archive = into / f"{folder.name}.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    pieces: list[Path] = []
    with archive.open("rb") as whole:
        while piece := whole.read(part_bytes):
            home = into / f"{folder.name}-{len(pieces):02d}"
            home.mkdir()
            (home / "part").write_bytes(piece)
            pieces.append(home)
    archive.unlink()
    sums = [hashlib.sha256((home / "part").read_bytes()).hexdigest() for home in pieces]
    for number, home in enumerate(pieces):
        (home / "list.json").write_text(json.dumps({"set": folder.name, "number": number, "sha256": sums}))
    return pieces


def gather(part: Path, into: Path | None = None) -> str:
    """Keeps a carried part in ``into``, and unpacks the wheels once all are there; says how far that is.

    Raises ValueError for a part that is not as it was cut.
    """
    into = temporary("wheels") if into is None else into
    about = json.loads((part / "list.json").read_text())
    name, sums = about["set"], about["sha256"]
    content = (part / "part").read_bytes()
    if hashlib.sha256(content).hexdigest() != sums[about["number"]]:
        raise ValueError(f"{part} is not as it was cut: carry it again")
    home = into / f"{name}-parts"
    home.mkdir(parents=True, exist_ok=True)
    (home / sums[about["number"]]).write_bytes(content)
    missing = [number for number, digest in enumerate(sums) if not (home / digest).exists()]
    if missing:
        return f"{len(sums) - len(missing)} of {len(sums)} parts of {name}; missing: {missing}"
    archive = into / f"{name}.tar"
    with archive.open("wb") as whole:
        for digest in sums:
            whole.write((home / digest).read_bytes())
    shutil.rmtree(into / name, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(into / name, filter="data")
    archive.unlink()
    shutil.rmtree(home)
    return f"all {len(sums)} parts of {name}: {len(list((into / name).iterdir()))} files in {into / name}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download a set here")
    fetching.add_argument("set", choices=SETS)
    fetching.add_argument("--python", default="3.12", help="version there (default 3.12)")
    fetching.add_argument("--without", default="", help="comma-separated packages that are there already")
    gathering = commands.add_parser("gather", help="keep a carried part there")
    gathering.add_argument("part", type=Path)
    options = parser.parse_args()
    if options.command == "gather":
        print(gather(options.part))
        return
    for folder in fetch(options.set, options.python, options.without.lower().split(",")):
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
