"""Brings the field's data sets into ``<root>/{train,test}/<class>/<image>``; see ``prepare``."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path

from slca_fast.data.prepare.place import PrepareReport
from slca_fast.data.prepare.unpack import discard_unpacked
from slca_fast.datasets import preparers
from slca_fast.errors import DataError, UserError, did_you_mean


def preparer(dataset: str) -> Callable[..., PrepareReport]:
    """The function that prepares ``dataset``; raises UserError for one that the table does not know."""
    known = preparers()
    if dataset not in known:
        raise UserError(
            f"prepare knows no data set {dataset!r}{did_you_mean(dataset, known)}; it knows {', '.join(known)}"
        )
    module, _, function = known[dataset].partition(":")
    return getattr(importlib.import_module(module), function)


def takes_source(function: Callable[..., PrepareReport]) -> bool:
    """Whether a preparer starts from images as downloaded; made-up ones do not."""
    return "source" in inspect.signature(function).parameters


def prepare(dataset: str, source: str | Path | None, root: str | Path, **options) -> PrepareReport:
    """Prepare ``dataset`` from ``source`` (its folder or archives as downloaded) under ``root``.

    Options are those of the data set's ``preparer``; all but ``synthetic`` take ``link`` ("hard" or
    "copy"), ``check_counts`` and ``progress``. An interrupted call is finished by the same call.
    Raises UserError for unknown names and missing options, DataError for a source that is not what it should be.
    """
    function = preparer(dataset)
    known = [name for name in inspect.signature(function).parameters if name not in ("source", "root")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UserError(f"prepare {dataset} has no option {unknown[0]!r}; it has {', '.join(known)}")
    root = Path(os.path.expanduser(root))
    if not takes_source(function):
        return _finished(root, lambda: function(root, **options))
    if source is None:
        raise UserError(f"prepare {dataset} needs --source, the folder or archive as downloaded")
    source = Path(os.path.expanduser(source))
    if not source.exists():
        raise UserError(f"--source {source} does not exist")
    return _finished(root, lambda: function(source, root, **options))


def _finished(root: Path, function: Callable[[], PrepareReport]) -> PrepareReport:
    """What ``function`` returns; neither it nor a refusal leaves unpacked archives, an interruption does."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--root {root} is a file: give a folder")
    new = not root.exists()
    try:
        report = function()
    except (UserError, DataError):
        discard_unpacked(root)
        if new and root.exists() and not any(root.iterdir()):
            root.rmdir()
        raise
    discard_unpacked(root)
    return report
