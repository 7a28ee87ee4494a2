"""Promise 1: SIGKILL at any moment, then --resume, ends in the very weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
from crash import Death, processes, wait
from helpers import tiny_config, write_images

from slca_fast.kernels.vit_block import passes

SIZES = ("--tasks.sizes", "[2,1,1]")
# ``make torture`` sets it; the default is what continuous integration has time for.
NUM_KILLS = int(os.environ.get("SLCA_FAST_TEST_KILLS", "12"))
PHASES = [Death("stage 1", 2), Death("batch", 4), Death("statistics", 2), Death("alignment", 2), Death("evaluation", 3)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def result(output: Path) -> tuple[str, list]:
    summary = json.loads((output / "summary.json").read_text())
    assert summary["status"] == "complete"
    if passes.why_not() is None:
        assert summary["backends"]["blocks"] in ("native products", "native passes")
    return summary["weights_sha256"], summary["accuracy_matrix"]


@pytest.fixture(scope="module", params=[1, 2])
def undisturbed(request, images, tmp_path_factory) -> tuple[int, tuple[str, list], float]:
    size, folder = request.param, tmp_path_factory.mktemp("whole")
    # The first start pays for the server's imports; it must not count as the run's time.
    for output in (folder / "first", folder / "second"):
        began = time.monotonic()
        assert wait(processes(tiny_config(images, output, *SIZES), folder, size=size)) == [0] * size
        seconds = time.monotonic() - began
    assert result(folder / "first") == result(folder / "second")
    return size, result(folder / "second"), seconds


def killed_then_finished(config, folder: Path, deaths: list[Death], size: int) -> int:
    """Runs and resumes through all ``deaths``; returns how many happened."""
    kills = 0
    for death in deaths:
        codes = wait(processes(config, folder, death, size))
        # A later start may have too little left to do for the death to come.
        assert codes[0] in (0, -9), codes
        if codes[0] == 0:
            break
        # A rank that is through may have ended well while rank 0 was still writing the summary.
        allowed = (0, 1) if death.event == "file" else (1,)
        assert all(code in allowed for code in codes[1:]), f"the other ranks must notice that one is gone: {codes}"
        kills += 1
    started = processes(config, folder, None, size)
    assert wait(started) == [0] * size, started[0].log.read_text()
    return kills


@pytest.mark.slow
def test_killed_in_every_phase(undisturbed, images, tmp_path) -> None:
    size, expected, _ = undisturbed
    for number, death in enumerate(PHASES):
        config = tiny_config(images, tmp_path / f"run{number}", *SIZES)
        assert killed_then_finished(config, tmp_path, [death], size) == 1
        assert result(Path(config.output)) == expected, death


@pytest.mark.slow
def test_killed_again_and_again_at_random_times(undisturbed, images, tmp_path) -> None:
    size, expected, seconds = undisturbed
    rng, kills, run_number = random.Random(size), 0, 0
    while kills < NUM_KILLS:
        run_number += 1
        config = tiny_config(images, tmp_path / f"run{run_number}", *SIZES)
        while kills < NUM_KILLS:
            started = processes(config, tmp_path, size=size)
            time.sleep(rng.uniform(0.1, 1) * seconds)
            if not any(process.is_alive() for process in started):
                break
            for process in started:
                process.kill()
            wait(started)
            kills += 1
        started = processes(config, tmp_path, size=size)
        assert wait(started) == [0] * size, started[0].log.read_text()
        assert result(Path(config.output)) == expected, f"after kill {kills}"


@pytest.mark.slow
def test_killed_at_file_operations(undisturbed, images, tmp_path) -> None:
    """Each start dies a few writes, fsyncs or renames later than the one before: in the middle of every checkpoint."""
    size, expected, _ = undisturbed
    rng = random.Random(7)
    config = tiny_config(images, tmp_path / "run", *SIZES)
    deaths = [Death("file", rng.randint(3, 60)) for _ in range(max(4, NUM_KILLS // 3))]
    assert killed_then_finished(config, tmp_path, deaths, size) >= 2
    assert result(Path(config.output)) == expected
