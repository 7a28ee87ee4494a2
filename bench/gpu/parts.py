"""A step is cut into parts, each in a process and a time budget of its own: one that fails costs the others nothing.

A part writes its rows one by one as it gets them, so that what was measured before a crash or the end of the time
stays. On a GPU an illegal access spoils a process for good, and a kernel that hangs does so for ever.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from environment import source_sha256, temporary
from records import Record, Row, line_of, not_measured, row_from, write

LEAST_SECONDS = 10.0
"""A part is not begun with less time left."""
ERROR = "error: "
"""How the reason of a row begins whose part failed."""
GRACE_SECONDS = 5.0
"""From asking a part to end to ending it."""


@dataclass
class Context:
    """What a part is given."""

    sizes: Any
    """``sizes.Sizes``: how large everything is."""
    out: Path
    """Folder for files beside the record, at most a log."""
    seconds: float
    began: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the part adds to the record's ``machine``."""

    @property
    def scratch(self) -> Path:
        """Folder for large files that later parts and steps on this machine find again."""
        return self.out / "scratch" if self.sizes.dry else temporary("scratch")

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.began + self.seconds - time.monotonic()


Measure = Callable[[Context], Iterable[Row]]


@dataclass(frozen=True)
class Part:
    """One process of a step."""

    name: str
    seconds: float
    """The most it may take."""
    measure: Measure
    """Yields its rows."""


@dataclass(frozen=True)
class Step:
    """One call of the ladder."""

    about: str
    minutes: float
    """All its parts together, unless the command line says otherwise."""
    parts: Callable[[Any], Sequence[Part]]
    """Sizes -> parts, the most wanted first."""
    finish: Callable[[list[Row]], Iterable[Row]] = lambda rows: ()
    """Rows that follow from those of several parts."""


Start = Callable[[Part, Path, float], list[str]]
"""Part, file for its rows, seconds -> the command of its process."""


def run_step(name: str, step: Step, sizes: Any, out: Path, minutes: float, *, dry: bool, start: Start) -> Record:
    """Runs the parts one after the other and writes ``out/NAME.json`` after each; ``dry`` runs them in this process."""
    out.mkdir(parents=True, exist_ok=True)
    began, budget = time.monotonic(), 60 * minutes
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = Record(name, dry, date, 0.0, budget, source_sha256())
    with (out / f"{name}.log").open("w") as log:
        for part in step.parts(sizes):
            seconds = min(part.seconds, budget - (time.monotonic() - began))
            if seconds < min(LEAST_SECONDS, part.seconds):
                rows = [not_measured(name, part.name, "", "the step's time was up before it began")]
            elif dry:
                context = Context(sizes, out, seconds)
                rows = list(rows_of(name, part, context))
                _add_facts(record, machine_facts(context))
            else:
                rows = _in_a_process(name, part, seconds, out, log, record, start)
            record.rows += rows
            _finished(record, part.name, rows, began, out)
    rows = list(step.finish(record.rows))
    record.rows += rows
    _finished(record, "done", rows, began, out)
    return record


def _finished(record: Record, part: str, rows: list[Row], began: float, out: Path) -> None:
    """Says and writes what there is so far."""
    for row in rows:
        said = f"{row.value:,.4g} {row.unit}" if row.value is not None else "not measured"
        ratios = "".join(f"; {ratio['median']:.2f}x {name}" for name, ratio in row.ratios.items())
        why = f" ({row.reason})" if row.reason else ""
        print(f"{row.name} | {row.case} | {row.way}: {said}{ratios}{why}", flush=True)
    record.seconds = time.monotonic() - began
    print(f"-- {part}: {record.seconds:.0f} s of {record.budget_seconds:.0f} s gone", flush=True)
    write(record, out / f"{record.step}.json")


def rows_of(step: str, part: Part, context: Context) -> Iterator[Row]:
    """The part's rows; its failure is the last of them."""
    try:
        yield from part.measure(context)
    except Exception as error:
        traceback.print_exc()
        yield not_measured(step, part.name, "", f"{ERROR}{type(error).__name__}: {error}")


def _in_a_process(
    step: str, part: Part, seconds: float, out: Path, log: IO[str], record: Record, start: Start
) -> list[Row]:
    file = out / f".{step}-rows.jsonl"
    file.write_text("")
    log.write(f"== {part.name}, at most {seconds:.0f} s\n")
    log.flush()
    process = subprocess.Popen(start(part, file, seconds), stdout=log, stderr=log, start_new_session=True)
    why = None
    try:
        code = process.wait(seconds)
        why = None if code == 0 else f"the process ended with {code}: see {step}.log"
    except subprocess.TimeoutExpired:
        why = f"not done after {seconds:.0f} s"
    finally:
        _end(process)
    rows = []
    for line in file.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            break  # the last line of a process that was ended
        if "facts" in values:
            _add_facts(record, values["facts"])
        else:
            rows.append(row_from(values, file))
    file.unlink()
    return rows if why is None else [*rows, not_measured(step, part.name, "", why)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it has started: a DataLoader's workers, a run of pytest."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
            return


def _add_facts(record: Record, facts: dict[str, Any]) -> None:
    record.versions = facts.pop("versions", record.versions)
    rates = {**record.machine.get("measured_peaks", {}), **facts.pop("measured_peaks", {})}
    record.machine |= facts | {"measured_peaks": rates}


def measure_here(step: str, part: Part, file: Path, context: Context) -> None:
    """What the process of a part does: rows, then the machine's facts, into ``file``."""
    with file.open("a") as lines:
        for row in rows_of(step, part, context):
            lines.write(line_of(row) + "\n")
            lines.flush()
        lines.write(json.dumps({"facts": machine_facts(context)}, default=str) + "\n")


def machine_facts(context: Context) -> dict[str, Any]:
    """Device, processor, memory, versions, and what a part has found out."""
    import torch

    from slca_fast.machine.environment import machine, memory_bytes, pick_device, versions

    device = pick_device("auto")
    facts = machine() | {"python": sys.version.split()[0], "memory_bytes": memory_bytes(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    return facts | {"versions": versions()} | context.facts
