"""Which files of an image folder are images, in torchvision's order; only files of odd names are opened."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from slca_fast.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".jfif")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
DOMAIN_FILE = "domains.json"


@dataclass(frozen=True)
class FolderListing:
    """Image files of one split before any is read. Paths are relative to root and include the split."""

    root: Path
    split: str
    class_names: tuple[str, ...]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of what cannot even be listed."""
    notes: Counter = field(default_factory=Counter)
    domains: list[int] | None = None
    domain_names: tuple[str, ...] = ()


def list_split(root: Path, split: str) -> FolderListing:
    """All images under ``<root>/<split>/<class>``, recursively, ordered by class, folder and file name.

    With ``<root>/domains.json`` (a list of names) the folder below the class names the image's domain.
    Raises DataError when the split or a class folder cannot be read.
    """
    folder = root / split
    try:
        class_names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from None
    domain_names = read_domain_names(root)
    listing = FolderListing(root, split, class_names, domains=[] if domain_names else None, domain_names=domain_names)
    for label, name in enumerate(class_names):
        _list_class(listing, label, os.path.join(split, name))
    return listing


def read_domain_names(root: Path) -> tuple[str, ...]:
    """Names in ``<root>/domains.json`` in task order, or () without such a file."""
    try:
        names = json.loads((root / DOMAIN_FILE).read_text())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise DataError(f"{root / DOMAIN_FILE} cannot be read ({error})") from None
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise DataError(f"{root / DOMAIN_FILE} must hold a JSON list of domain names")
    return tuple(names)


def _list_class(listing: FolderListing, label: int, class_folder: str) -> None:
    found: list[tuple[str, str]] = []
    above = tuple(_identity(os.stat(folder)) for folder in (listing.root, listing.root / listing.split))
    _walk(listing, class_folder, above, found)
    for folder, name in sorted(found):
        path = os.path.join(folder, name)
        if listing.domains is not None:
            domain = os.path.relpath(folder, class_folder).split(os.sep)[0]
            if domain not in listing.domain_names:
                raise DataError(
                    f"{listing.root / path} is in no domain folder: expected {class_folder}/<domain>/ "
                    f"with a domain of {DOMAIN_FILE} ({', '.join(listing.domain_names)})"
                )
            listing.domains.append(listing.domain_names.index(domain))
        listing.paths.append(path)
        listing.labels.append(label)


def _walk(listing: FolderListing, folder: str, above: tuple, found: list[tuple[str, str]]) -> None:
    full = listing.root / folder
    try:
        status = os.stat(full)
        entries = list(os.scandir(full))
    except OSError as error:
        listing.problems.append((folder, f"folder cannot be read ({error.strerror})"))
        return
    identity = _identity(status)
    if identity in above:
        listing.problems.append((folder, "looping symlink: leads back to a folder above it"))
        return
    for entry in entries:
        path = os.path.join(folder, entry.name)
        if entry.name.startswith("."):
            listing.notes["hidden files ignored"] += 1
        elif entry.is_symlink() and not os.path.exists(entry.path):
            listing.problems.append((path, _broken_link(entry.path)))
        elif entry.is_dir():
            _walk(listing, path, (*above, identity), found)
        elif entry.name.lower().endswith(EXTENSIONS) or _looks_like_image(entry):
            found.append((folder, entry.name))
        else:
            listing.notes["other files ignored"] += 1


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _broken_link(path: str) -> str:
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"dangling symlink to {os.readlink(path)}"
    except OSError as error:
        return f"looping symlink ({error.strerror})"
    return "symlink cannot be followed"


def _looks_like_image(entry: os.DirEntry) -> bool:
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            return file.read(8).startswith(_MAGIC)
    except OSError:
        return False
