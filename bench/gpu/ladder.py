"""Measures what docs/performance.md says of a GPU, in steps that fit one call of under nine minutes each.

``python bench/gpu/ladder.py STEP --out DIR`` writes ``DIR/STEP.json`` (records.py has the format) and ``DIR/STEP.log``;
``all`` runs every step. ``--dry`` runs a step on a CPU at tiny sizes, with Triton's kernels interpreted: it shows that
the step works, and measures nothing. README.md beside this file says how to go on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import environment

if TYPE_CHECKING:
    from parts import Part, Step

STEPS = {
    "tests": "gpu_tests:STEP",
    "rates-lora": "step_rates:LORA",
    "rates-full": "step_rates:FULL",
    "compile": "compile_times:STEP",
    "ops": "op_table:STEP",
    "run": "whole_run:STEP",
    "determinism": "two_runs:STEP",
    "dali": "image_rates:STEP",
}
"""In the order in which they are worth a GPU's time."""


def step_named(name: str) -> Step:
    """Imports the step's module, and with it torch: ``environment.prepare`` comes before."""
    module, _, attribute = STEPS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def main() -> int:
    """Runs steps, or one part of a step for the process that does."""
    options = _options()
    environment.prepare(options.dry)
    if missing := environment.missing_modules(environment.NEEDED_MODULES):
        print(f"missing here: {', '.join(missing)}; install them, or bring wheels with carry.py", file=sys.stderr)
        return 2
    from parts import Context, measure_here, run_step
    from sizes import DRY, REAL

    sizes = DRY if options.dry else REAL
    if options.epochs is not None:
        sizes = dataclasses.replace(sizes, epochs=options.epochs)
    out = options.out.resolve()
    if options.part is not None:
        (part,) = (part for part in step_named(options.step).parts(sizes) if part.name == options.part)
        measure_here(options.step, part, options.rows, Context(sizes, out, options.seconds))
        return 0
    if not options.dry and not _sees_cuda():
        print("torch sees no CUDA device; --dry runs the step on the CPU, at tiny sizes", file=sys.stderr)
        return 2

    def start(part: Part, rows: Path, seconds: float) -> list[str]:
        command = [sys.executable, str(Path(__file__).resolve()), name, "--out", str(out), "--part", part.name]
        command += ["--rows", str(rows), "--seconds", str(seconds)]
        return command + (["--epochs", str(options.epochs)] if options.epochs is not None else [])

    for name in STEPS if options.step == "all" else [options.step]:
        step = step_named(name)
        print(f"== {name}: {step.about}", flush=True)
        run_step(name, step, sizes, out, options.minutes or step.minutes, dry=options.dry, start=start)
    return 0


def _sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=[*STEPS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the records and logs")
    parser.add_argument("--minutes", type=float, help="time for the step; by default under nine")
    parser.add_argument("--epochs", type=int, help="of the whole run: fewer than 50 leave a rest to extrapolate")
    parser.add_argument("--dry", action="store_true", help="on the CPU, at tiny sizes: measures nothing")
    for name, kind in (("part", str), ("rows", Path), ("seconds", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
