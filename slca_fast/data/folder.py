"""The images of one split in torchvision's order, with their classes and domains; none is decoded."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from slca_fast.data.kinds import has_image_name
from slca_fast.data.walk import find_images, is_passed_over, subfolders
from slca_fast.errors import DataError

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
        class_names = tuple(subfolders(folder))
        beside = set(os.listdir(folder)).difference(class_names)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from None
    domain_names = read_domain_names(root)
    listing = FolderListing(root, split, class_names, domains=[] if domain_names else None, domain_names=domain_names)
    hidden = {name for name in beside if is_passed_over(name)}
    listing.notes.update("hidden files ignored" for _ in hidden)
    listing.notes.update("images in no class folder ignored" for name in beside - hidden if has_image_name(name))
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
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{root / DOMAIN_FILE} names the domain {twice[0]!r} twice")
    return tuple(names)


def _list_class(listing: FolderListing, label: int, class_folder: str) -> None:
    found = find_images(listing.root, class_folder)
    listing.problems.extend(found.problems)
    listing.notes.update(found.notes)
    for folder, name in found.images:
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
