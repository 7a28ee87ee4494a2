"""How a run's costs grow with its tasks and classes: a tiny model, tiny images, one process a run.

``python bench/growth.py`` runs the sizes of docs/performance.md and prints its table; ``--only 100x10`` runs 100 tasks
of 10 classes alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from slca_fast.cli.config_args import parse_overrides
from slca_fast.experiment import run
from slca_fast.methods.presets import PRESETS
from slca_fast.runs.folder import RunFolder
from slca_fast.runs.observer import Observer

# Tasks x classes a task: every size after half of it.
SIZES = ((500, 1), (1000, 1), (50, 10), (100, 10), (25, 100), (50, 100))
NUM_TRAIN, NUM_TEST, PIXELS = 2, 1, 16
KWARGS = "{img_size: 16, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}"
SETTINGS = {
    "model.checkpoint": "null",
    "model.kwargs": KWARGS,
    "data.image_size": str(PIXELS),
    "data.backend": "pillow",
    "optim.epochs": "1",
    "optim.batch_size": "64",
    "align.epochs": "1",
    "align.samples_per_class": "4",
    "runtime.num_threads": "1",
}
HEADINGS = ("tasks x classes", "wall, s", "CPU, s", "phases, s", "saves, s", "first, last save: CPU ms")
HEADINGS += ("first, last checkpoint: kB", "of it state.json", "peak memory", "folder", "resume, CPU s")


def write_images(root: Path, num_classes: int) -> None:
    """An image folder of noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for c in range(num_classes):
            folder = root / split / f"c{c:05d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (PIXELS, PIXELS, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(num_tasks: int, per_task: int) -> dict:
    """One run and the resume of its end, in this process."""
    saves: list[dict] = []
    save_position = RunFolder.save_position

    def timed(self: RunFolder, *args: object) -> Path:
        wall, cpu = time.perf_counter(), time.process_time()
        path = save_position(self, *args)  # type: ignore[arg-type]
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        saves.append({**spent, "bytes": num_bytes(path), "state": (path / "state.json").stat().st_size})
        return path

    RunFolder.save_position = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place) / "images", num_tasks * per_task)
        output = Path(place) / "run"
        settings = {**SETTINGS, "data.root": f"{place}/images", "output": str(output)}
        settings |= {"tasks.initial": str(per_task), "tasks.increment": str(per_task)}
        config = parse_overrides(PRESETS["demo"](), [w for k, v in settings.items() for w in (f"--{k}", v)])
        wall, cpu = time.perf_counter(), time.process_time()
        summary = run(config, preset="growth")
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found |= {"phases": sum(summary["phase_seconds"].values()), "saves": summary["checkpoint_seconds"]}
        found |= {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "folder": num_bytes(output)}
        (output / "summary.json").unlink()
        cpu = time.process_time()
        again = run(config, preset="growth", resume=True, observer=Observer())
        assert again["weights_sha256"] == summary["weights_sha256"]
        found["resume"] = time.process_time() - cpu
    # The means of ten: one save is too short to time.
    part = min(10, len(saves) // 2)
    for name, some in (("first", saves[:part]), ("last", saves[-part:])):
        found[name] = {key: sum(save[key] for save in some) / part for key in saves[0]}
    return {"tasks": num_tasks, "per_task": per_task, **found}


def row(found: dict) -> list[str]:
    """Of the table in docs/performance.md."""
    first, last = found["first"], found["last"]
    return [
        f"{found['tasks']:,} x {found['per_task']}",
        *(f"{found[name]:.1f}" for name in ("wall", "cpu", "phases", "saves")),
        f"{1e3 * first['cpu']:.1f}, {1e3 * last['cpu']:.1f}",
        f"{first['bytes'] / 1e3:.0f}, {last['bytes'] / 1e3:.0f}",
        f"{first['state'] / 1e3:.0f}, {last['state'] / 1e3:.0f}",
        f"{found['peak'] / 1e6:,.0f} MB",
        f"{found['folder'] / 1e6:.1f} MB",
        f"{found['resume']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="TASKSxCLASSES, measured in this process; prints JSON")
    only = parser.parse_args().only
    if only:
        num_tasks, per_task = map(int, only.split("x"))
        print(json.dumps(measure(num_tasks, per_task)))
        return
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
    for num_tasks, per_task in SIZES:
        command = [sys.executable, __file__, "--only", f"{num_tasks}x{per_task}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print("| " + " | ".join(row(json.loads(done.stdout.splitlines()[-1]))) + " |", flush=True)


if __name__ == "__main__":
    main()
