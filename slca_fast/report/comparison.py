"""Several runs side by side: those that differ only in their seed form one group with mean and deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slca_fast import metrics
from slca_fast.errors import UserError
from slca_fast.runs.reading import read_run
from slca_fast.runs.record import RunRecord

# neither says what was computed
_NOT_COMPARED = ("seed", "output", "preset")


@dataclass(frozen=True)
class RunGroup:
    """Complete runs that differ only in their seed."""

    label: str
    runs: tuple[RunRecord, ...]

    def spread(self, metric: str) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation over the runs; None where none, or fewer than two, have it."""
        return mean_and_std([run.metric(metric) for run in self.runs])

    def curve(self) -> list[tuple[float | None, float | None]]:
        """Mean and sample standard deviation of the accuracy after each task, percent."""
        length = max(len(run.curve) for run in self.runs)
        return [mean_and_std([run.curve[t] for run in self.runs if t < len(run.curve)]) for t in range(length)]

    def phases(self) -> dict[str, float]:
        """Mean seconds per phase; a phase that a run lacks took it no time."""
        per_run = [run.phases() for run in self.runs]
        names = dict.fromkeys(name for phases in per_run for name in phases)
        return {name: sum(phases.get(name, 0.0) for phases in per_run) / len(per_run) for name in names}


def mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1) of the values that are there."""
    known = [v for v in values if v is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def group_runs(run_dirs: list[Path]) -> tuple[list[RunGroup], list[str]]:
    """Groups in the order given, and one note per run left out; raises UserError when no run is complete."""
    if not run_dirs:
        raise UserError("no runs to compare; give at least one run folder")
    notes: list[str] = []
    groups: dict[str, list[RunRecord]] = {}
    seen: set[Path] = set()
    for folder in map(Path, run_dirs):
        if folder.resolve() in seen:
            notes.append(f"{folder} was given twice and is counted once.")
            continue
        seen.add(folder.resolve())
        run = read_run(folder)
        if run.complete and any(a is not None for a in run.curve):
            groups.setdefault(_group_key(run), []).append(run)
        else:
            why = "records no accuracy" if run.complete else f"is not finished ({len(run.curve)} tasks so far)"
            notes.append(f"{folder} {why} and was left out.")
    if not groups:
        raise UserError(f"none of the {len(seen)} runs is complete; resume with `slca-fast train ... --resume`")
    records = [tuple(runs) for runs in groups.values()]
    grouped = [RunGroup(label, runs) for label, runs in zip(_labels([runs[0] for runs in records]), records)]
    for group in grouped:
        seeds = [run.seed for run in group.runs]
        if len(set(map(str, seeds))) < len(seeds):
            notes.append(
                f"{group.label}: some runs share a seed ({', '.join(map(str, seeds))}), so its deviation "
                "is not one over seeds only."
            )
    return grouped, notes


def rows_of(groups: list[RunGroup]) -> list[dict[str, Any]]:
    """The rows of :func:`comparison_rows`."""
    rows = []
    for group in groups:
        first = group.runs[0]
        row: dict[str, Any] = {
            "label": group.label,
            "method": first.method,
            "preset": first.preset,
            "num_runs": len(group.runs),
            "seeds": [run.seed for run in group.runs],
        }
        for metric in metrics.METRICS:
            row[f"{metric.name}_mean"], row[f"{metric.name}_std"] = group.spread(metric.name)
        rows.append(row)
    return rows


def comparison_rows(run_dirs: list[Path]) -> list[dict[str, Any]]:
    """One dict per group of runs that differ only in their seed, in the order given.

    Keys: label, method, preset, num_runs, seeds, and ``<name>_mean`` and ``<name>_std`` for every metric of
    ``metrics.METRICS``, as it is recorded. The deviation is the sample one (n - 1); None with one run, as is what no
    run measured. Raises UserError when no run is complete.
    """
    return rows_of(group_runs(run_dirs)[0])


def _group_key(run: RunRecord) -> str:
    what = {k: v for k, v in run.config.items() if k not in _NOT_COMPARED} or {"preset": run.preset}
    return json.dumps([run.summary.get("method"), run.task_sizes, what], sort_keys=True, default=str)


def _labels(firsts: list[RunRecord]) -> list[str]:
    """The shortest name that tells all groups apart: method, preset, both, or both and the settings."""
    methods, presets = [run.method for run in firsts], [run.preset for run in firsts]
    both = [f"{method} ({preset})" for method, preset in zip(methods, presets)]
    for names in (methods, presets, both):
        if len(set(names)) == len(names):
            return names
    flat = [_flatten(run.config) for run in firsts]
    labels = []
    for i, name in enumerate(both):
        twins = [flat[j] for j in range(len(both)) if both[j] == name]
        differing = [k for k in flat[i] if any(twin.get(k) != flat[i][k] for twin in twins)]
        settings = ", ".join(f"{k}={flat[i][k]}" for k in differing)
        labels.append(f"{name} [{settings}]" if settings else name)
    return [label if labels.count(label) == 1 else f"{label} #{i + 1}" for i, label in enumerate(labels)]


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in _NOT_COMPARED:
            flat[f"{prefix}{key}"] = value
    return flat
