"""``slca-fast bench``: ops, stages, whole runs or accuracies against their baselines, as a table and a JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from slca_fast.cli.paths import user_path
from slca_fast.files import replace_text

COLUMNS = f"{'name':<30} {'shape':<34} {'backend':<22} {'baseline':<20} {'ms':>10} {'ratio':>7}  (least .. most), n"


def main(argv: Sequence[str]) -> int:
    """Measures one suite and prints its rows; ``--json`` writes them with machine, versions and date."""
    parser = argparse.ArgumentParser(
        prog="slca-fast bench",
        description="Measure this machine: single ops, the stages of a run, whole runs, how a run grows, or whether "
        "the fast ways learn as well as the official one.",
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="stages")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the rows there")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 5; whole runs: 1)")
    parser.add_argument("--only", help="comma-separated names: ops, stages, or methods (run, accuracy)")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    options = parser.parse_args(argv)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}: give at least 1")
    for suite in ("growth", "accuracy"):
        for option in ("rounds", "compile", *(["only"] if suite == "growth" else [])):
            if options.suite == suite and getattr(options, option):
                parser.error(f"--{option} is not for --suite {suite}: leave it out")
    only = tuple(options.only.split(",")) if options.only else None
    rows = SUITES[options.suite](options, only, parser.error)
    if options.json is not None:
        from slca_fast.benchmark.run import machine_facts
        from slca_fast.benchmark.stages import peaks
        from slca_fast.machine.environment import pick_device

        facts = machine_facts()
        facts["machine"]["measured_peaks"] = peaks(pick_device("auto"))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        replace_text(options.json, json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return 0


def _ops(options: argparse.Namespace, only: tuple[str, ...] | None, refuse: Callable[[str], Any]) -> list[dict]:
    from slca_fast.benchmark import ops
    from slca_fast.machine.environment import pick_device

    print(COLUMNS)
    try:
        return ops.run(pick_device("auto"), names=only, compiled=options.compile, on_row=_show)
    except ValueError as error:
        refuse(f"--only: {error}")
        raise


def _stages(options: argparse.Namespace, only: tuple[str, ...] | None, refuse: Callable[[str], Any]) -> list[dict]:
    from slca_fast.benchmark import stages

    _refuse_unknown(only, stages.STAGES, refuse)
    print(COLUMNS)
    return stages.run(
        names=only or tuple(stages.STAGES),
        rounds=options.rounds or 5,
        compiled=True if options.compile else None,
        on_row=_show,
    )


def _run(options: argparse.Namespace, only: tuple[str, ...] | None, refuse: Callable[[str], Any]) -> list[dict]:
    from slca_fast.benchmark import run

    _refuse_unknown(only, run.METHODS, refuse)
    rows = run.measure(
        methods=only or tuple(run.METHODS), rounds=options.rounds or 1, compiled=options.compile, on_line=_say
    )
    print(COLUMNS)
    for row in rows:
        _show(row)
    return rows


def _growth(options: argparse.Namespace, only: tuple[str, ...] | None, refuse: Callable[[str], Any]) -> list[dict]:
    from slca_fast.benchmark import run

    return run.growth(on_line=_say)


def _accuracy(options: argparse.Namespace, only: tuple[str, ...] | None, refuse: Callable[[str], Any]) -> list[dict]:
    from slca_fast.benchmark import run

    _refuse_unknown(only, run.METHODS, refuse)
    return run.accuracy(methods=only or tuple(run.METHODS), on_line=_say)


def _refuse_unknown(only: tuple[str, ...] | None, known: Collection[str], refuse: Callable[[str], Any]) -> None:
    unknown = [name for name in only or () if name not in known]
    if unknown:
        refuse(f"--only: {unknown[0]} is none of {', '.join(known)}")


def _say(text: str) -> None:
    print(text, flush=True)


def _show(row: dict[str, Any]) -> None:
    _say(
        f"{row['name']:<30} {row['shape']:<34} {row['backend']:<22} {row['baseline']:<20} {row['median_ms']:10.2f} "
        f"{row['ratio']:7.2f}  ({row['ratio_min']:.2f} .. {row['ratio_max']:.2f}), {row['n']}"
        + (f"; by CPU time {row['cpu_ratio']:.2f}" if "cpu_ratio" in row else "")
    )


SUITES = {"ops": _ops, "stages": _stages, "run": _run, "growth": _growth, "accuracy": _accuracy}
