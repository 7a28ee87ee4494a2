"""``slca-fast train``: one or several presets or files, one or several seeds."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from slca_fast.cli.config_args import Source, config_help, load_source, parse_overrides, split_names
from slca_fast.config import Config
from slca_fast.config_file import config_to_yaml
from slca_fast.errors import UserError
from slca_fast.methods.table import method_class

USAGE = "slca-fast train PRESET|FILE.yaml ... [--a.b VALUE ...] [--output DIR] [--seeds S,S,..] [--resume]"
FLAGS = ("--help", "--resume", "--print-config", "--profile")
"""Options that take no value."""


def main(argv: Sequence[str]) -> int:
    """Trains what ``argv`` names; several presets or seeds share one output folder and end in a comparison."""
    options, rest = _parse(argv)
    if options.help:
        print(f"usage: {USAGE}\n")
        print(
            "options:\n  --seeds S,S,..   run once per seed and report mean and std\n"
            "  --resume         continue the newest checkpoint of the run folder\n"
            "  --print-config   print the resolved configuration and stop\n"
            "  --profile        trace a few training steps and time the phases, in DIR/profile\n"
            "  --debug          show the traceback of an error\n"
        )
        print(config_help())
        return 0
    runs = _plan_runs(options, rest)
    if options.print_config:
        print("---\n".join(config_to_yaml(config) for _, config in runs), end="")
        return 0
    return _train_all(runs, options, argv)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="slca-fast train", usage=USAGE, add_help=False, allow_abbrev=False)
    for flag in FLAGS:
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-h", dest="help", action="store_true")
    parser.add_argument("--seeds")
    names, args = split_names(argv, FLAGS)
    options, rest = parser.parse_known_args(args)
    options.names = names
    if not names and not options.help:
        raise UserError(f"name a preset or a YAML file: {USAGE}; slca-fast presets lists them")
    return options, rest


def _plan_runs(options: argparse.Namespace, rest: list[str]) -> list[tuple[Source, Config]]:
    seeds = _seeds(options.seeds)
    if seeds and any(arg == "--seed" or arg.startswith("--seed=") for arg in rest):
        raise UserError("--seed and --seeds exclude each other: give one of them")
    runs = []
    for name in options.names:
        source = load_source(name)
        config = parse_overrides(source.config, rest)
        if source.of_run and config.output == source.config.output and not options.resume:
            # A run's own configuration names its folder: repeating it must not land there.
            config = dataclasses.replace(config, output=None)
        for seed in seeds or [config.seed]:
            runs.append((source, dataclasses.replace(config, seed=seed, output=_output(options, source, config, seed))))
            method_class(config.method).check(config)
    taken: dict[str, str] = {}
    for source, config in runs:
        if config.output in taken:
            raise UserError(
                f"{source.name} and {taken[config.output]} would both write {config.output}; rename one file"
            )
        taken[config.output] = source.name
    return runs


def _output(options: argparse.Namespace, source: Source, config: Config, seed: int) -> str:
    several = options.seeds is not None
    if config.output is None:
        return f"runs/{source.name}/seed{seed}" if several else f"runs/{source.name}-seed{seed}"
    parts = [config.output] + ([source.name] if len(options.names) > 1 else []) + ([f"seed{seed}"] if several else [])
    return os.path.join(*parts)


def _seeds(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: give integers separated by commas, e.g. --seeds 1993,1996,1997") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: a seed is named twice")
    return seeds


def _train_all(runs: list[tuple[Source, Config]], options: argparse.Namespace, argv: Sequence[str]) -> int:
    from slca_fast.cli.console import observer_for, outcome_text
    from slca_fast.experiment import Interrupted, run
    from slca_fast.machine.environment import pick_device
    from slca_fast.machine.ranks import join_ranks, restarted
    from slca_fast.runs.observer import Observer
    from slca_fast.runs.reading import read_run

    ranks = join_ranks(any(pick_device(config.runtime.device).type == "cuda" for _, config in runs))
    console = Console(stderr=False)
    # A batch system and torchrun may both pass one signal on to every rank.
    stop = StopSignal(speaks=ranks.is_first, deaf_seconds=0.0 if ranks.alone else 10.0)
    done: list[Path] = []
    # A restart by torchrun --max-restarts repeats the command as it was.
    resumed = options.resume or restarted()
    resumes = ranks.from_first(lambda: _which_resume([config for _, config in runs], resumed, options.resume))
    for (source, config), resume in zip(runs, resumes):
        assert config.output is not None
        folder = Path(config.output)
        prefix = f"[{source.name} seed {config.seed}] " if len(runs) > 1 else ""
        observer = observer_for(console, prefix, config.optim.epochs) if ranks.is_first else Observer()
        profiler = None
        if options.profile:
            from slca_fast.cli.profiling import ProfilingObserver

            observer = profiler = ProfilingObserver(observer)
        with stop:
            try:
                summary = run(
                    config,
                    preset=source.name,
                    resume=resume,
                    observer=observer,
                    should_stop=stop.asked,
                    ranks=ranks,
                )
            except Interrupted as interrupted:
                again = shlex.join(["slca-fast", "train", *argv, *([] if options.resume else ["--resume"])])
                if ranks.is_first:
                    print(f"stopped; a checkpoint is in {interrupted.folder}; continue with: {again}", file=sys.stderr)
                ranks.leave()
                return 128 + (stop.number or signal.SIGTERM)
        if not ranks.is_first:
            continue
        if profiler is not None:
            console.print(f"profile: {profiler.write(folder, summary)}", highlight=False, markup=False, soft_wrap=True)
        from slca_fast.report.run_page import write_report

        report = write_report(folder)
        done.append(folder)
        console.print(
            f"{prefix}{outcome_text(read_run(folder))}; report: {report}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if len(done) > 1:
        _compare(done, console)
    ranks.leave()
    return 0


def _which_resume(configs: list[Config], resumed: bool, insist: bool) -> list[bool]:
    """Whether each run is continued; raises UserError, before the first of them, for folders that forbid it."""
    from slca_fast.runs.folder import begun, require_free

    folders = [Path(config.output) for config in configs if config.output is not None]
    if not resumed:
        for folder in folders:
            require_free(folder)
        return [False for _ in folders]
    if insist and len(folders) == 1 and not begun(folders[0]):
        raise UserError(f"--resume: {folders[0]} holds no run; leave --resume out to start one there")
    return [begun(folder) for folder in folders]


def _compare(done: list[Path], console: Console) -> None:
    from slca_fast.report.comparison_page import compare_runs
    from slca_fast.report.comparison_table import comparison_table

    console.print(comparison_table(done))
    parent = Path(os.path.commonpath(done))
    console.print(
        f"comparison: {compare_runs(done, parent / 'report.html')}", highlight=False, markup=False, soft_wrap=True
    )


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a wish to stop; a second one ends the process at once.

    ``deaf_seconds``: how long after the first a further signal is taken for the same one. ``speaks``: whether this
    process tells the user.
    """

    def __init__(self, speaks: bool = True, deaf_seconds: float = 0.0) -> None:
        self.number = 0
        self.speaks, self.deaf_seconds = speaks, deaf_seconds
        self._first_at = 0.0
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        return self.number != 0

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: object) -> None:
        if self.number:
            if time.monotonic() - self._first_at >= self.deaf_seconds:
                os._exit(128 + number)
            return
        self.number, self._first_at = number, time.monotonic()
        if self.speaks:
            # Not print: a signal may arrive in the middle of one, which must not be entered twice.
            os.write(2, b"stopping after this batch, with a checkpoint; once more to stop at once\n")
