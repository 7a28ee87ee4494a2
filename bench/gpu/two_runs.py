"""Step "determinism": whether two runs of one seed, in processes of their own, end with the same weights to the bit."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import many_images
from parts import Context, Part, Step
from records import Row, not_measured

from slca_fast.config import RuntimeConfig
from slca_fast.experiment import run

NAME = "two runs of one seed"
OPTION = "deterministic"
DEFAULT = "as by default"


def settings() -> dict[str, bool | None]:
    """What is compared, by name: ``runtime.deterministic`` where there is the option, else the default alone."""
    if OPTION not in {field.name for field in dataclasses.fields(RuntimeConfig)}:
        return {DEFAULT: None}
    return {f"runtime.{OPTION} true": True, f"runtime.{OPTION} false": False}


def measure(method: str, setting: str, number: int, context: Context) -> Iterator[Row]:
    """One run; the row's value is its rate, the details hold its weights' sha256."""
    sizes = replace(context.sizes, num_classes=context.sizes.pair_tasks * context.sizes.classes_per_task)
    base, value = sizes.config(method), settings()[setting]
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            base,
            output=str(Path(folder) / "run"),
            data=replace(base.data, root=str(many_images.made(sizes, context.scratch))),
            optim=replace(base.optim, epochs=sizes.pair_epochs, milestones=(sizes.pair_epochs,)),
            runtime=base.runtime if value is None else replace(base.runtime, **{OPTION: value}),
        )
        summary = run(config, preset="ladder")
    yield Row(
        NAME,
        f"{method}, {setting}",
        f"run {number}",
        value=summary["train_images_per_second"],
        unit="images/s",
        n=1,
        details={name: summary[name] for name in ("weights_sha256", "backends", "precision", "total_seconds")},
    )


def finish(rows: list[Row]) -> Iterator[Row]:
    """Whether the runs of each setting agree: 1 or 0."""
    for case in dict.fromkeys(row.case for row in rows if row.name == NAME and row.details):
        hashes = [row.details["weights_sha256"] for row in rows if row.case == case and row.details]
        if len(hashes) < 2:
            yield not_measured(NAME, case, "compared", "only one of the two runs was done")
        else:
            yield Row(
                NAME, case, "compared", value=float(len(set(hashes)) == 1), unit="equal (1) or not (0)", n=len(hashes)
            )


STEP = Step(
    about="two runs of one seed, compared by the sha256 of their weights",
    minutes=8.5,
    parts=lambda sizes: [
        Part(f"{method}, {setting}, {number}", 120, partial(measure, method, setting, number))
        for method in ("slcapp", "slca")
        for setting in settings()
        for number in (1, 2)
    ],
    finish=finish,
)
