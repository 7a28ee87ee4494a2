"""scikit-learn's handwritten digits (UCI optical recognition of handwritten digits) as an image folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from slca_fast.files import naming

SIZE = 32
SPLIT_SEED = 0
TEST_SHARE = 0.2
MARKER = "digits.json"


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) sorted index arrays: a fifth of every class, chosen by a fixed seed, is test."""
    random = np.random.RandomState(SPLIT_SEED)
    test = []
    for c in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == c))
        test.append(members[: round(TEST_SHARE * len(members))])
    test = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test), test


def digit_image(levels: np.ndarray):
    """An 8 x 8 array of grey levels 0..16 as a 32 x 32 RGB Pillow image (bicubic)."""
    from PIL import Image

    grey = Image.fromarray(np.rint(levels * (255 / 16)).astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def _fingerprint(root: Path) -> dict:
    """Number of PNGs under `root` and a SHA-256 over their relative names and bytes."""
    files = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*/*.png"))
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    return {"images": len(files), "sha256": digest.hexdigest()}


def is_complete(root: Path) -> bool:
    """Whether `root` holds the whole folder, byte for byte as its marker file says."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return marker == _fingerprint(root)


def write_digits(root: str | Path) -> Path:
    """Write 1,797 digits as `<root>/{train,test}/<0..9>/<nnnn>.png` and return `root`.

    32 x 32 RGB PNGs, split 80/20 within each class; <nnnn> is the index in `sklearn.datasets.load_digits()`.
    A complete folder is left alone. Otherwise the images are written beside `root` and renamed into place, so
    an interrupted call leaves nothing half-written. Raises FileExistsError if `root` is something else than
    such a folder, so that no one's own files are ever replaced, and OSError with a name when the disk fails.
    """
    root = Path(root)
    if is_complete(root):
        return root
    if root.exists() and not _is_ours(root):
        raise FileExistsError(f"{root} exists and is not a digits folder; choose another place")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    root.parent.mkdir(parents=True, exist_ok=True)
    with naming(root):
        _write(digits, root)
    return root


def _write(digits: Any, root: Path) -> None:
    train, test = split_indices(digits.target)
    staging = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for part, indices in (("train", train), ("test", test)):
            for index in indices:
                folder = staging / part / str(digits.target[index])
                folder.mkdir(parents=True, exist_ok=True)
                digit_image(digits.images[index]).save(folder / f"{index:04d}.png")
        (staging / MARKER).write_text(json.dumps(_fingerprint(staging)) + "\n", encoding="utf-8")
        os.chmod(staging, 0o755)
        if root.exists():
            shutil.rmtree(root)
        try:
            os.rename(staging, root)
        except OSError:
            if not is_complete(root):  # another process may have finished the same folder first
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_ours(root: Path) -> bool:
    """Whether an incomplete `root` can only be a damaged or empty digits folder, safe to redo."""
    if not root.is_dir():
        return False
    allowed = {MARKER} | {f"{part}/{c}" for part in ("train", "test") for c in range(10)} | {"train", "test"}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        inside = path.parent.relative_to(root).as_posix() in allowed and path.suffix == ".png"
        numbered = inside and path.stem.isdigit() and len(path.stem) == 4
        if name not in allowed and not numbered:
            return False
    return True
