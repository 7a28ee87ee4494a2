"""Which changes forbid going on with a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from slca_fast.config import Config
from slca_fast.config_file import config_to_dict, flatten, shown
from slca_fast.data.index import ImageDataset
from slca_fast.errors import UserError

# These may differ on resume (docs/reliability.md): another device or number of threads can change the last bits of
# what follows, the rest changes nothing. The number of ranks is not even part of the configuration.
MAY_CHANGE = (
    "output",
    "data.root",
    "data.num_workers",
    "data.prefetch",
    "data.hw_decoder_load",
    "data.cache",
    "data.cache_budget_gb",
    "runtime.device",
    "runtime.num_threads",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "track.tensorboard",
    "track.wandb",
    "model.checkpoint",
)


def data_sha256(dataset: ImageDataset) -> str:
    """A digest over the paths, sizes in bytes, labels and domains of both splits."""
    digest = hashlib.sha256()
    for index in (dataset.train, dataset.test):
        names = "\n".join((*index.class_names, "", *index.domain_names, "", *index.paths))
        digest.update(names.encode(errors="surrogateescape"))
        digest.update(index.num_bytes_N.tobytes())
        digest.update(index.label_N.tobytes())
        digest.update(b"" if index.domain_N is None else index.domain_N.tobytes())
    return digest.hexdigest()


def first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Key, old and new value, written out, of the first setting that must not differ and does; None without one."""
    old, new = flatten(dict(before)), flatten(dict(now))
    for key in sorted(old.keys() | new.keys()):
        was, now_is = old.get(key), new.get(key)
        if key in MAY_CHANGE or was == now_is:
            continue
        if isinstance(was, dict) and isinstance(now_is, dict):
            part = next(k for k in sorted(was.keys() | now_is.keys()) if was.get(k) != now_is.get(k))
            return f"{key}.{part}", shown(was.get(part)), shown(now_is.get(part))
        return key, shown(was), shown(now_is)
    return None


def refuse_changes(before: Mapping[str, Any], data_before: str | None, config: Config, data_hash: str) -> None:
    """Raises UserError naming the first setting that differs from those the run was started with.

    ``before``: its configuration as a dictionary; ``data_before``: its images' digest, None where not known.
    """
    if (change := first_change(before, config_to_dict(config))) is not None:
        key, old, now = change
        raise UserError(
            f"--{key} is {now} but the run was started with {old}; resume with the old value, or start a new run in "
            f"another --output"
        )
    if data_before not in (None, data_hash):
        raise UserError(
            "--data.root: the images are not those the run was started with (paths, sizes or labels "
            "differ); restore them, or start a new run in another --output"
        )
