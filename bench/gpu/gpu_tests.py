"""Step "tests": every test that needs a GPU, whatever fails before it, with each one's outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from environment import NEEDED_MODULES, ROOT, SCIENCE_MODULES, missing_modules
from parts import Context, Part, Step
from records import Row

LEFT_FOR_THE_RECORD = 15.0
MOST_SECONDS_A_TEST = 100
"""Of pytest-timeout; a kernel that hangs it cannot end."""
MOST_SILENT_SECONDS = 120
"""After so long without a word of a test its process is ended."""
MOST_PROCESSES = 20


def measure(context: Context) -> Iterator[Row]:
    """One row: how many passed, and the rest by name."""
    log, lines = context.out / "tests.pytest.log", context.out / ".tests.jsonl"
    log.write_text("")
    lines.write_text("")
    selection: list[str] = ["--continue-on-collection-errors", *context.sizes.test_selection]
    _pytest([*selection, "--collect-only"], context, log, lines)
    outcomes = Outcomes()
    outcomes.add(lines)
    for _ in range(MOST_PROCESSES):
        waiting = outcomes.waiting
        if not waiting or context.left < LEFT_FOR_THE_RECORD:
            break
        lines.write_text("")
        ended = _pytest(waiting, context, log, lines)
        before = len(waiting)
        outcomes.add(lines, crashed=f"pytest ended with {ended}" if ended is not None else "hung, or not done in time")
        if len(outcomes.waiting) == before:
            break
    lines.unlink()
    yield outcomes.row(missing_modules([*NEEDED_MODULES, *SCIENCE_MODULES]))


class Outcomes:
    """What the plugin wrote, of one process after the other."""

    def __init__(self) -> None:
        self.collected: list[str] = []
        self.tests: dict[str, dict[str, Any]] = {}
        self.cannot_collect: dict[str, str] = {}
        self.spoilt: list[str] = []

    @property
    def waiting(self) -> list[str]:
        return [name for name in self.collected if name not in self.tests]

    def add(self, lines: Path, crashed: str = "") -> None:
        """A test that began and never finished took the process with it, as ``crashed`` says."""
        running = None
        for line in lines.read_text().splitlines():
            said = json.loads(line)
            if "collected" in said and not self.collected:
                self.collected = said["collected"]
            elif "cannot_collect" in said:
                self.cannot_collect[said["cannot_collect"]] = said["message"]
            elif "began" in said:
                running = said["began"]
            elif "finished" in said:
                running = None
            elif "spoilt" in said:
                self.spoilt.append(said["spoilt"])
            elif "test" in said:
                name = said.pop("test")
                known = self.tests.get(name)
                # A failure at the end of a test that passed is a failure.
                if known is None or said["outcome"] == "failed":
                    self.tests[name] = said
        if running is not None and running not in self.tests:
            self.tests[running] = {"outcome": "failed", "seconds": None, "message": crashed}

    def row(self, missing: list[str]) -> Row:
        by = {outcome: [n for n, t in self.tests.items() if t["outcome"] == outcome] for outcome in OUTCOMES}
        problems = {
            "failed": len(by["failed"]),
            "not run": len(self.waiting),
            "files that cannot be collected": len(self.cannot_collect),
        }
        said = ", ".join(f"{count} {what}" for what, count in problems.items() if count)
        return Row(
            "GPU tests",
            "pytest -m gpu",
            value=float(len(by["passed"])),
            unit="passed",
            reason=said or None,
            details={
                "collected": len(self.collected),
                "skipped": len(by["skipped"]),
                "seconds": {name: test["seconds"] for name, test in self.tests.items()},
                "failed": {name: self.tests[name]["message"] for name in by["failed"]},
                "not_run": self.waiting,
                "cannot_collect": self.cannot_collect,
                "spoilt_the_device": self.spoilt,
                "missing_packages": missing,
            },
        )


OUTCOMES = ("passed", "failed", "skipped")


def _pytest(arguments: list[str], context: Context, log: Path, lines: Path) -> int | None:
    """Runs it with the plugin; its exit code, None when it was ended: the time was up, or a test hung."""
    command = [sys.executable, "-m", "pytest", "-p", "ladder_pytest", "-p", "no:cacheprovider", "-rfE", *arguments]
    if not missing_modules(["pytest_timeout"]):
        command += ["--timeout", str(MOST_SECONDS_A_TEST)]
    environment = {**os.environ, "SLCA_LADDER_TESTS": str(lines)}
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n"[:2000])
        file.flush()
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment)
        while context.left > LEFT_FOR_THE_RECORD and time.time() - lines.stat().st_mtime < MOST_SILENT_SECONDS:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(1.0)
        process.kill()
        process.wait()
        return None


STEP = Step(
    about="all tests that need a GPU, in as many processes as failures ask for",
    minutes=8.5,
    parts=lambda sizes: [Part("tests", 500, measure)],
)
