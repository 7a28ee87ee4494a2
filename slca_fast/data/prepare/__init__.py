"""Brings the field's data sets into ``<root>/{train,test}/<class>/<image>``; see ``prepare``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from slca_fast.data.prepare.cars196 import prepare_cars196
from slca_fast.data.prepare.cifar100 import prepare_cifar100
from slca_fast.data.prepare.cub200 import prepare_cub200
from slca_fast.data.prepare.domainnet import prepare_domainnet
from slca_fast.data.prepare.image_folder import prepare_image_folder
from slca_fast.data.prepare.imagenet_r import prepare_imagenet_r
from slca_fast.data.prepare.place import PrepareReport
from slca_fast.data.prepare.synthetic import prepare_synthetic
from slca_fast.errors import UserError

DATASETS: dict[str, Callable[..., PrepareReport]] = {
    "imagenet-r": prepare_imagenet_r,
    "cub200": prepare_cub200,
    "cars196": prepare_cars196,
    "cifar100": prepare_cifar100,
    "domainnet": prepare_domainnet,
    "folder": prepare_image_folder,
    "synthetic": prepare_synthetic,
}


def prepare(dataset: str, source: str | Path | None, root: str | Path, **options) -> PrepareReport:
    """Prepare ``dataset`` from ``source`` (its folder or archives as downloaded) under ``root``.

    Options are those of the data set's function in ``DATASETS``; all but ``synthetic`` take ``link`` ("hard" or
    "copy"), ``check_counts`` and ``progress``. An interrupted call is finished by the same call.
    Raises UserError for unknown names and missing options, DataError for a source that is not what it should be.
    """
    if dataset not in DATASETS:
        raise UserError(f"prepare knows no data set {dataset!r}; it knows {', '.join(DATASETS)}")
    function = DATASETS[dataset]
    known = [name for name in inspect.signature(function).parameters if name not in ("source", "root")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UserError(f"prepare {dataset} has no option {unknown[0]!r}; it has {', '.join(known)}")
    root = Path(root).expanduser()
    if dataset == "synthetic":
        return function(root, **options)
    if source is None:
        raise UserError(f"prepare {dataset} needs --source, the folder or archive as downloaded")
    source = Path(source).expanduser()
    if not source.exists():
        raise UserError(f"--source {source} does not exist")
    return function(source, root, **options)
