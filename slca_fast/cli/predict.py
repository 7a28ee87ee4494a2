"""``slca-fast predict``: the best classes of image files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from slca_fast.cli.paths import user_path
from slca_fast.cli.warning import warn
from slca_fast.errors import DataError, UserError


def main(argv: Sequence[str]) -> int:
    """Prints the top classes with probabilities of every file (folders are searched for images)."""
    parser = argparse.ArgumentParser(prog="slca-fast predict", description="Classify image files with a run.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("paths", nargs="+", type=user_path, metavar="PATH", help="image file, or folder of images")
    parser.add_argument("--top-k", type=int, default=5, metavar="K")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    if options.top_k < 1:
        raise UserError(f"--top-k is {options.top_k}: give at least 1")
    files = list(_files(options.paths))
    from slca_fast.runs.trained import load_run, predict

    for prediction in predict(load_run(options.run, options.device, warn), files, options.top_k):
        best = list(zip(prediction.classes, prediction.probabilities))
        if options.json:
            print(
                json.dumps(
                    {"path": prediction.path, "predictions": [{"class": name, "probability": p} for name, p in best]}
                ),
                flush=True,
            )
        else:
            print(f"{prediction.path}: " + ", ".join(f"{name} {100 * p:.1f}%" for name, p in best), flush=True)
    return 0


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as given, whatever their names; of folders, the images by the rule of data sets."""
    from slca_fast.data.walk import find_images

    for path in paths:
        if path.is_dir():
            found = find_images(path)
            if found.problems:
                name, reason = found.problems[0]
                raise DataError(f"{path / name}: {reason}")
            if not found.images:
                raise UserError(f"{path}: no images in this folder")
            yield from (path / folder / name for folder, name in found.images)
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: " + ("not a regular file" if path.exists() else "no such file"))
