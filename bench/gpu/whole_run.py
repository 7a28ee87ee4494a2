"""Step "run": SLCA++ on a stand-in of Split ImageNet-R's full shape; what is missing when the time is up is computed.

The official way's step on the same device says how long it would take at least.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import many_images
from parts import Context, Part, Step
from records import EXTRAPOLATED, MEASURED, Row
from sizes import Sizes

from slca_fast.config import Config
from slca_fast.experiment import Interrupted, run
from slca_fast.runs.observer import Observer

LEFT_FOR_THE_END = 25.0
"""Seconds that a stop, the last checkpoint and the record may take."""


@dataclass
class Seen(Observer):
    """When things happened, and what every epoch took."""

    began: float = field(default_factory=time.perf_counter)
    first_epoch_began: float | None = None
    epochs: list[list[float]] = field(default_factory=list)
    """Seconds by task and epoch."""
    rest: list[float] = field(default_factory=list)
    """Seconds of every finished task outside its epochs: statistics, alignment, evaluation, saving."""
    _task_began: float = 0.0

    def task_started(self, task: int, num_tasks: int, num_classes: int, num_images: int) -> None:
        self._task_began = time.perf_counter()
        self.first_epoch_began = self.first_epoch_began or self._task_began
        self.epochs.append([])

    def epoch_finished(self, report: Any, accuracy: dict[str, float]) -> None:
        self.epochs[-1].append(report.seconds)

    def task_finished(self, task: int, num_tasks: int, result: Any) -> None:
        self.rest.append(time.perf_counter() - self._task_began - sum(self.epochs[-1]))

    @property
    def start_up(self) -> float:
        """Seconds until the first epoch: images' headers, model, compiling."""
        return (self.first_epoch_began or time.perf_counter()) - self.began


@dataclass(frozen=True)
class Extrapolation:
    """What a whole run takes, of what was seen of it."""

    seconds: float
    formula: str


def extrapolated(seen: Seen, num_tasks: int, num_epochs: int) -> Extrapolation | None:
    """A run of so many tasks and epochs, when all its tasks are alike; None before a second epoch was seen.

    A missing epoch counts as the median of those after a task's first, a missing first one (it decodes) as the mean of
    the first ones, the missing rest of a task as the last one seen times the classes it has more: statistics and saving
    do not grow with the classes, so that is rather too much.
    """
    first = [epochs[0] for epochs in seen.epochs if epochs]
    later = [seconds for epochs in seen.epochs for seconds in epochs[1:]]
    if not later or not seen.rest:
        return None
    trained = sum(first) + sum(later)
    missing_first = num_tasks - len(first)
    missing_later = num_tasks * (num_epochs - 1) - len(later)
    each_first, each_later, last_rest = statistics.mean(first), statistics.median(later), seen.rest[-1]
    num_done = len(seen.rest)
    missing_rest = sum(last_rest * (task + 1) / num_done for task in range(num_done, num_tasks))
    seconds = seen.start_up + trained + missing_first * each_first + missing_later * each_later
    seconds += sum(seen.rest) + missing_rest
    formula = (
        f"start-up {seen.start_up:.1f} s + {len(first) + len(later)} epochs measured {trained:.1f} s "
        f"+ {missing_first} first epochs x {each_first:.3f} s + {missing_later} later epochs x {each_later:.3f} s "
        f"+ the rest of {num_done} tasks measured {sum(seen.rest):.1f} s, of {num_tasks - num_done} more "
        f"{missing_rest:.1f} s (the last one's {last_rest:.2f} s times the classes seen)"
    )
    return Extrapolation(seconds, formula)


def measure(context: Context) -> Iterator[Row]:
    """The run, its phases, and the official way's least time for it."""
    sizes = context.sizes
    began = time.perf_counter()
    images = many_images.made(sizes, context.scratch)
    context.facts["seconds_to_make_the_images"] = time.perf_counter() - began
    base = sizes.config("slcapp")
    seen = Seen()
    end = context.began + context.seconds - LEFT_FOR_THE_END
    with tempfile.TemporaryDirectory() as folder:
        config = replace(base, data=replace(base.data, root=str(images)), output=str(Path(folder) / "run"))
        interrupted, summary_file = False, Path(folder) / "run" / "summary.json"
        try:
            run(config, preset="ladder", observer=seen, should_stop=lambda: time.monotonic() > end)
        except Interrupted:
            interrupted = True
        summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    case = (
        f"slcapp, {sizes.num_classes} classes, {sizes.num_classes * sizes.images_per_class[0]:,} training images, "
        f"{sizes.num_tasks} tasks"
    )
    complete = not interrupted and sizes.epochs == sizes.planned_epochs
    yield _whole(seen, summary, sizes, case, complete)
    for name, value in summary["phase_seconds"].items() if complete else ():
        yield Row(f"{name}, whole run", case, "in the run", value=value, unit="s", n=1)


def _whole(seen: Seen, summary: dict[str, Any], sizes: Sizes, case: str, complete: bool) -> Row:
    details = {
        "epochs_planned": sizes.planned_epochs,
        "epochs_a_task": sizes.epochs,
        "start_up_seconds": seen.start_up,
        "epoch_seconds": seen.epochs,
        "rest_seconds": seen.rest,
    }
    details |= {name: summary[name] for name in FROM_THE_SUMMARY if name in summary}
    memory = summary.get("peak_memory_bytes")
    if complete:
        return Row(
            "whole run", case, "bf16, compiled", MEASURED, summary["total_seconds"], "s", 1,
            peak_memory_bytes=memory, details=details,
        )  # fmt: skip
    more = extrapolated(seen, sizes.num_tasks, sizes.planned_epochs)
    assert more is not None, f"no task was finished: {details}"
    return Row(
        "whole run", case, "bf16, compiled", EXTRAPOLATED, more.seconds, "s", 1,
        peak_memory_bytes=memory, reason=more.formula, details=details,
    )  # fmt: skip


FROM_THE_SUMMARY = (
    "total_seconds", "phase_seconds", "checkpoint_seconds", "train_images_per_second", "backends", "backend_reasons",
    "precision", "accuracy_curve", "weights_sha256",
)  # fmt: skip


def measure_official(context: Context) -> Iterator[Row]:
    """The official way's training and forward rates with its own loaders, and the least time of its whole run."""
    import torch

    from slca_fast.benchmark import official_way
    from slca_fast.data.index import load_dataset
    from slca_fast.machine.environment import pick_device

    sizes, device = context.sizes, pick_device("auto")
    base = sizes.config("slcapp")
    config = replace(base, data=replace(base.data, root=str(many_images.made(sizes, context.scratch))))
    dataset = load_dataset(config.data)
    plan = official_way.plan_of(config, len(dataset.class_names))
    learner = official_way.OfficialLearner(config, plan, device)
    learner.begin_task(0)
    images = official_way.Images(dataset.train, plan, 0, plan.offsets[1], official_way.train_transform(config))
    loader = torch.utils.data.DataLoader(
        images, config.optim.batch_size, shuffle=True, num_workers=official_way.TRAIN_WORKERS
    )
    train = _images_per_second(loader, lambda batch: learner.train_epoch([batch], 0), sizes.official_seconds)
    forward = _images_per_second(loader, lambda batch: learner.accuracy([batch]), sizes.official_seconds)
    trained, measured = official_images(config, sizes)
    seconds = trained / train + measured / forward
    yield Row(
        "whole run",
        f"slcapp, {sizes.num_classes} classes",
        "official way, fp32, eager",
        EXTRAPOLATED,
        seconds,
        "s",
        1,
        reason=(
            f"{trained:,} training images / {train:.0f} images/s + {measured:,} in accuracy passes and statistics / "
            f"{forward:.0f} images/s; its alignment is left out, so it takes more"
        ),
        details={"train_images_per_second": train, "forward_images_per_second": forward},
    )


def official_images(config: Config, sizes: Sizes) -> tuple[int, int]:
    """Images that the official way trains on, and those it passes forward: every 5 epochs training and seen test
    images, the statistics, a test pass after every epoch of the alignment and at the end of every task."""
    from slca_fast.benchmark.official_way import ACCURACY_EVERY

    train_a_task, test_a_task = (sizes.classes_per_task * number for number in sizes.images_per_class)
    tasks = sizes.num_tasks
    tests = [test_a_task * (task + 1) for task in range(tasks)]
    passes = sizes.planned_epochs // ACCURACY_EVERY
    forward = passes * (tasks * train_a_task + sum(tests)) + tasks * train_a_task
    forward += config.align.epochs * sum(tests[1:]) + sum(tests)
    return sizes.planned_epochs * tasks * train_a_task, forward


def _images_per_second(loader: Any, step: Callable[[Any], Any], seconds: float) -> float:
    """Of the batches after the first, pass after pass, each with its loader's workers started anew."""
    done: list[tuple[float, int]] = []
    end = time.perf_counter() + seconds
    while len(done) < 2 or time.perf_counter() < end:
        for batch in loader:
            step(batch)
            done.append((time.perf_counter(), len(batch[2])))
            if len(done) > 1 and time.perf_counter() > end:
                break
    return sum(images for _, images in done[1:]) / (done[-1][0] - done[0][0])


STEP = Step(
    about="a whole SLCA++ run of Split ImageNet-R's shape, and the official way's least time for it",
    minutes=8.8,
    parts=lambda sizes: [Part("run", 455, measure), Part("official", 65, measure_official)],
)
