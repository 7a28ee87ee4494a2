"""The one format of every step's result: ``STEP.json`` holds a ``Record``, a record holds rows.

A row that could not be measured is a row too and says why: nothing is left out in silence. table.py makes the table in
docs/performance.md of these files.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1
MEASURED, EXTRAPOLATED, NOT_MEASURED = "measured", "extrapolated", "not measured"


@dataclass(frozen=True)
class Row:
    """One number of one machine."""

    name: str
    """What was measured, e.g. ``"training step"``."""
    case: str
    """On what, e.g. ``"slcapp, batch 128"``."""
    way: str = ""
    """How, e.g. ``"bf16, compiled"``."""
    status: str = MEASURED
    """"measured", "extrapolated" (``reason`` is then the formula) or "not measured" (``reason`` says why)."""
    value: float | None = None
    """The median, where there are several."""
    unit: str = ""
    """Of ``value``, e.g. ``"images/s"`` or ``"ms"``."""
    n: int | None = None
    """How often it was measured."""
    least: float | None = None
    greatest: float | None = None
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    """Baseline -> ``{median, least, greatest, n}`` of the baseline's time over this way's, round by round."""
    fraction_of_peak: float | None = None
    """Of the machine's own measured rate that ``peak`` names."""
    peak: str | None = None
    """"copy", "matmul fp32" or "matmul bf16"."""
    peak_memory_bytes: int | None = None
    """Device memory that this way alone takes at most."""
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """What else there is to say, as plain values."""

    def __post_init__(self) -> None:
        assert self.status in (MEASURED, EXTRAPOLATED, NOT_MEASURED), self.status
        assert (self.value is None) == (self.status == NOT_MEASURED), self
        assert self.value is None or math.isfinite(self.value), self
        assert self.status == MEASURED or self.reason, f"{self.name}, {self.case}: say why"


def not_measured(name: str, case: str, way: str, reason: str) -> Row:
    """The row of what has no number."""
    return Row(name, case, way, status=NOT_MEASURED, reason=reason)


@dataclass
class Record:
    """One step on one machine."""

    step: str
    dry: bool
    """Made without a GPU, at tiny sizes: shows that the step works, measures nothing."""
    date: str
    """ISO 8601, UTC."""
    seconds: float
    """That the step took."""
    budget_seconds: float
    source_sha256: str
    """Of the source files (environment.py)."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Device, processor, memory and the rates measured on it."""
    versions: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    format: int = FORMAT


def write(record: Record, path: Path) -> None:
    """Writes it; numbers that are not finite become null, which they are not."""
    path.write_text(json.dumps(_finite(asdict(record)), indent=1, allow_nan=False, default=str) + "\n")


def read(path: Path) -> Record:
    """The inverse of ``write``; raises ValueError for a file of another format."""
    values = json.loads(path.read_text())
    if values.get("format") != FORMAT:
        raise ValueError(f"{path} has format {values.get('format')}, not {FORMAT}: measure it again")
    unknown = set(values) - {f.name for f in fields(Record)}
    if unknown:
        raise ValueError(f"{path} has unknown fields: {', '.join(sorted(unknown))}")
    rows = [row_from(row, path) for row in values.pop("rows")]
    return Record(rows=rows, **values)


def row_from(values: dict[str, Any], where: Path) -> Row:
    """A row of the dictionary that ``asdict`` made; raises ValueError for a field that it does not have."""
    try:
        return Row(**values)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{where}: not a row: {error}") from error


def line_of(row: Row) -> str:
    """The row as one line of JSON."""
    return json.dumps(_finite(asdict(row)), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
