"""Writes the GPU part of docs/performance.md: targets, what is computed, and what the records of the ladder measured.

``python bench/gpu/table.py`` reads ``bench/results/gpu/<machine>/<step>.json`` and writes between the page's two
markers. A cell without a measurement says so. tests/benchmark/test_gpu_table.py checks that the page is current.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import predict
from environment import ROOT
from records import EXTRAPOLATED, NOT_MEASURED, Record, Row, read

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results" / "gpu"
BEGIN, END = "<!-- written by bench/gpu/table.py -->", "<!-- end of what it writes -->"
COMPILED, OFFICIAL_FP32, OFFICIAL_BF16 = (
    "bf16, compiled",
    "official way, fp32, eager",
    "official way, bf16 autocast, eager",
)


@dataclass(frozen=True)
class Results:
    """The records of one machine."""

    machine: str
    records: tuple[Record, ...]

    def rows(self, name: str, case: str = "", way: str = "") -> list[Row]:
        """Those that have a number, of this name and whose case and way begin so."""
        rows = (row for record in self.records for row in record.rows)
        return [
            row
            for row in rows
            if row.name == name and row.case.startswith(case) and row.way.startswith(way) and row.status != NOT_MEASURED
        ]


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    what: str
    target: str
    computed: Callable[[predict.Machine], str]
    measured: Callable[[Results], str | None]
    """None where the records do not have it."""


def rate_of(method: str, batch_size: int) -> Callable[[Results], str | None]:
    """A compiled training step, with its share of the matrix rate and its ratios to the baselines."""

    def say(results: Results) -> str | None:
        for row in results.rows("training step", f"{method}, batch {batch_size}", COMPILED):
            told = [f"{row.value:,.0f} images/s"]
            if row.fraction_of_peak is not None:
                told.append(f"{row.fraction_of_peak:.0%} of the matrix rate")
            for baseline, short in ((OFFICIAL_FP32, "eager fp32"), (OFFICIAL_BF16, "eager bf16")):
                if baseline in row.ratios:
                    told.append(f"{row.ratios[baseline]['median']:.1f}x {short}")
            if row.peak_memory_bytes is not None:
                told.append(f"{row.peak_memory_bytes / 1e9:.1f} GB")
            return f"{', '.join(told)} (n = {row.n})"
        return None

    return say


def whole_run(results: Results) -> str | None:
    """Seconds, and whether all of them were measured."""
    for row in results.rows("whole run", "slcapp", COMPILED):
        return f"{row.value:.0f} s" + (" (extrapolated in part)" if row.status == EXTRAPOLATED else "")
    return None


def whole_run_ratio(results: Results) -> str | None:
    """The official way's least time over ours."""
    ours = results.rows("whole run", "slcapp", COMPILED)
    theirs = results.rows("whole run", "slcapp", OFFICIAL_FP32)
    if not ours or not theirs or ours[0].value is None or theirs[0].value is None:
        return None
    ratio = theirs[0].value / ours[0].value
    return f"at least {ratio:.1f}x (the official way's {theirs[0].value:,.0f} s follow from its rates)"


def seconds_of(phase: str) -> Callable[[Results], str | None]:
    """A phase of the run, else of the same work on made-up features."""

    ways = {"in the run": "in the run", "again": "alone, warm", "the first time": "alone, cold"}

    def say(results: Results) -> str | None:
        told = [
            f"{row.value:.2f} s {words}"
            for way, words in ways.items()
            for row in results.rows(f"{phase}, whole run", way=way)
        ]
        return ", ".join(told) or None

    return say


def op_rate(op: str, case: str, images: int = 0, baseline: str = "") -> Callable[[Results], str | None]:
    """The fastest way of an op on a shape: its time, share of the peak and ratios; ``images`` a call make it a rate."""

    def say(results: Results) -> str | None:
        told = []
        for dtype in ("fp32", "bf16"):
            rows = [row for row in results.rows(f"op {op}", case) if row.case.endswith(dtype)]
            if not rows:
                continue
            row = min(rows, key=lambda row: row.value or 0.0)
            assert row.value is not None
            words = [f"{1e3 * images / row.value:,.0f} images/s" if images else f"{row.value:.3g} ms"]
            if row.fraction_of_peak is not None:
                words.append(f"{row.fraction_of_peak:.0%} of {row.peak}")
            words += [f"{ratio['median']:.1f}x {name}" for name, ratio in row.ratios.items() if baseline in name]
            told.append(f"{dtype} {row.way}: {', '.join(words)}")
        return "; ".join(told) or None

    return say


def many_classes(results: Results) -> str | None:
    """Memory and times of ImageNet-21k's Gaussians."""
    rows = results.rows("many classes")
    told = [f"{row.way} {row.value:.1f} s" for row in rows]
    told += [f"{row.peak_memory_bytes / 1e9:.1f} GB" for row in rows[:1] if row.peak_memory_bytes is not None]
    return ", ".join(told) or None


def tests(results: Results) -> str | None:
    """How many passed, and what else happened."""
    for row in results.rows("GPU tests"):
        return f"{row.value:.0f} of {row.details['collected']}" + (f" ({row.reason})" if row.reason else "")
    return None


def compile_times(results: Results) -> str | None:
    """Of the SLCA++ model, with empty and with full caches."""
    told = [f"{row.value:.0f} s with {row.way}" for row in results.rows("start-up", "slcapp")]
    return ", ".join(told) or None


def same_bits(results: Results) -> str | None:
    """Every setting that was compared."""
    rows = results.rows("two runs of one seed", way="compared")
    return "; ".join(f"{row.case}: {'equal' if row.value else 'not equal'}" for row in rows) or None


def decoding(results: Results) -> str | None:
    """Images a second by DALI and from the cache."""
    rows = [row for way in ("DALI, decoder of the GPU", "resident cache") for row in results.rows("images", way=way)]
    return ", ".join(f"{row.way} {row.value:,.0f}" for row in rows) or None


def _nothing(machine: predict.Machine) -> str:
    return ""


def _rate(method: str) -> Callable[[predict.Machine], str]:
    return lambda machine: f"{predict.images_per_second(method, machine)[1]:,.0f} images/s"


def _least(**num_bytes: float) -> Callable[[predict.Machine], str]:
    return lambda machine: ", ".join(
        f"at least {predict.least_ms(number, machine):.2f} ms in {dtype}" for dtype, number in num_bytes.items()
    )


def _seconds(of: Callable[[predict.Machine], float]) -> Callable[[predict.Machine], str]:
    return lambda machine: f"{of(machine):.1f} s"


TARGETS = (
    Target("full fine-tuning, bf16, batch 128", ">= 4,000 images/s", _rate("slca"), rate_of("slca", 128)),
    Target("the same, batch 256", "none", _nothing, rate_of("slca", 256)),
    Target("SLCA++ LoRA, bf16, batch 128", ">= 6,000 images/s", _rate("slcapp"), rate_of("slcapp", 128)),
    Target("the same, batch 256", "none", _nothing, rate_of("slcapp", 256)),
    Target(
        "whole Split ImageNet-R SLCA++ run", "<= 300 s", lambda machine: f"{predict.run_s(machine)[1]:.0f} s", whole_run
    ),
    Target("the same against eager fp32", ">= 15x", _nothing, whole_run_ratio),
    Target(
        "alignment of that run", "<= 0.3 s", _seconds(lambda machine: predict.ALIGNMENT[1]), seconds_of("alignment")
    ),
    Target("statistics of that run", "<= 3 s", _seconds(predict.statistics_s), seconds_of("statistics")),
    Target("compiling", "none", lambda machine: f"{predict.COMPILING[1]:.0f} s with empty caches", compile_times),
    Target("augment, 400 px to 224", ">= 100,000 images/s", _nothing, op_rate("augment", "128 x 400 px to 224", 128)),
    Target(
        "symmetric cross-entropy, 4,096 x 21,841",
        ">= 85% of copy bandwidth, >= 1.5x torch.compile",
        _least(fp32=2 * 4096 * 21841 * 4, bf16=2 * 4096 * 21841 * 2),
        op_rate("symmetric_cross_entropy", "4096x21841", baseline="compile"),
    ),
    Target(
        "class moments, C = 1,000, N = 500, D = 768",
        ">= 1.5x centred baddbmm",
        _least(fp32=1000 * 768 * (500 + 768) * 4),
        op_rate("class_moments", "1000x500x768 torch.float32", baseline="eager"),
    ),
    Target(
        "batched Cholesky, 345 x 768 x 768",
        ">= 3x torch.linalg.cholesky",
        _least(fp32=2 * 345 * 768**2 * 4),
        op_rate("cholesky_factor", "345x768x768", baseline="torch.linalg"),
    ),
    Target("21,841 dense Gaussians, D = 768", "within 80 GB", _nothing, many_classes),
    Target("images from 400 px JPEGs", "none", _nothing, decoding),
    Target("tests that need a GPU", "all pass", _nothing, tests),
    Target("two runs of one seed", "equal to the bit", _nothing, same_bits),
)


def load(folder: Path = RESULTS) -> list[Results]:
    """The records of every machine, none of a dry run."""
    found = []
    for home in sorted(path for path in folder.glob("*") if path.is_dir()):
        records = [read(path) for path in sorted(home.glob("*.json"))]
        assert not any(record.dry for record in records), f"{home} holds a dry run: it measures nothing"
        if records:
            found.append(Results(home.name, tuple(records)))
    return found


def part(results: Sequence[Results]) -> str:
    """What stands between the markers."""
    measured = [of.machine for of in results] or ["a GPU"]
    computed = [f"{machine.name}, computed" for machine in predict.MACHINES]
    lines = [f"| what | target | {' | '.join([*computed, *(f'{name}, measured' for name in measured)])} |"]
    lines.append("|---" * (2 + len(computed) + len(measured)) + "|")
    for target in TARGETS:
        cells = [target.computed(machine) or "" for machine in predict.MACHINES]
        cells += [target.measured(of) or NOT_MEASURED for of in results] or [NOT_MEASURED]
        lines.append(f"| {target.what} | {target.target} | {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), *(f"- {line}" for line in _about(results)), "### Computed", predict.page()])


def _about(results: Iterable[Results]) -> list[str]:
    told = []
    for of in results:
        first = of.records[0]
        versions = ", ".join(
            f"{name} {first.versions[name]}" for name in ("torch", "triton", "timm") if name in first.versions
        )
        dates = sorted({record.date[:10] for record in of.records})
        told.append(f"{of.machine}: {first.machine.get('device')}, {versions}, {' to '.join(dates)}.")
    return told


def written(page: str, results: Sequence[Results]) -> str:
    """The page with the part in its place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest and after, f"{PAGE} lacks its markers"
    return f"{before}{BEGIN}\n\n{part(results)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), load()))
