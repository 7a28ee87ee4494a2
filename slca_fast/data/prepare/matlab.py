"""Reads a MATLAB table as plain values, in a process of its own: SciPy's reader crashes on some damaged files.

Run as a module it reads the file from its standard input and writes JSON.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from slca_fast.data.prepare.tables import read_bytes
from slca_fast.errors import DataError

_MOST_BYTES = 64 << 20
_MOST_MEMORY = 2 << 30
_MOST_SECONDS = 300


def read_matlab(file: Path) -> dict[str, Any]:
    """{variable: value}: texts, whole numbers, lists, {field: value} of structures; None for anything else.

    Raises DataError for a file that cannot be read.
    """
    content = read_bytes(file, _MOST_BYTES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__], input=content, capture_output=True, env=environment, timeout=_MOST_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{file} is no MATLAB file that can be read (it takes more than {_MOST_SECONDS} s)") from None
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines() if child.returncode > 0 else []
        reason = "".join(c for c in lines[-1][:300] if c.isprintable()) if lines else "the reader crashes"
        raise DataError(f"{file} is no MATLAB file that can be read ({reason})")
    return json.loads(child.stdout)


def _main() -> None:
    from scipy.io import loadmat

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    most = used + _MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings.simplefilter("ignore")
    table = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True, struct_as_record=False)
    json.dump({name: _plain(value) for name, value in table.items() if not name.startswith("__")}, sys.stdout)


def _plain(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.ravel()]
    if hasattr(value, "_fieldnames"):
        return {name: _plain(getattr(value, name)) for name in value._fieldnames}
    if isinstance(value, (int, np.integer, float, np.floating)) and np.isfinite(value) and value == int(value):
        return int(value)
    return str(value) if isinstance(value, str) else None


if __name__ == "__main__":
    _main()
