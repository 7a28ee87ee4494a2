"""The images that a finished run is tested on again: its classes and domains, found by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slca_fast.config import DataConfig
from slca_fast.data.index import ImageDataset, ImageIndex, load_dataset
from slca_fast.errors import UserError
from slca_fast.runs.resume import data_sha256
from slca_fast.runs.trained import TrainedModel


def dataset_for(model: TrainedModel, config: DataConfig) -> ImageDataset:
    """The data set of ``config`` with domains in the order in which ``model`` learned them.

    Raises UserError, naming them, for classes and domains that are not the run's, and DataError as ``load_dataset``.
    """
    dataset = load_dataset(config)
    option = f"--data.root {config.root}"
    _require_same(option, "class", dataset.class_names, model.class_names)
    if model.plan.scenario != "dil":
        return dataset
    if model.domain_names is None:
        if data_sha256(dataset) != model.data_sha256:
            raise UserError(
                f"{option}: these are not the images that the run was trained on, and an earlier version made it "
                f"without the names of its domains: give the same images"
            )
        return dataset
    _require_same(option, "domain", dataset.train.domain_names, model.domain_names)
    train, test = (_reordered(index, model.domain_names) for index in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test)


def _require_same(option: str, kind: str, found: tuple[str, ...], expected: tuple[str, ...]) -> None:
    for what, names in (
        ("lacks the run's", sorted(set(expected) - set(found))),
        ("has what the run never saw,", sorted(set(found) - set(expected))),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{option} {what} {kind} {names[0]}{more}: give a data set of the run's classes and domains"
            )


def _reordered(index: ImageIndex, names: tuple[str, ...]) -> ImageIndex:
    assert index.domain_N is not None
    place_D = np.array([names.index(name) for name in index.domain_names])
    return replace(index, domain_N=place_D[index.domain_N], domain_names=names)
