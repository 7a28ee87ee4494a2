"""A configuration as a plain dictionary, as YAML, and back."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import yaml

from slca_fast.config import Config
from slca_fast.errors import UserError

FREE_MAPPINGS = ("model.kwargs", "method_settings")
"""Keys whose values are mappings of names that the configuration does not know."""


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries and lists of plain values, ready for JSON or YAML."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def config_to_yaml(config: Config, preset: str | None = None) -> str:
    """The whole configuration as YAML, every key written out; ``preset``, the run's label, comes first."""
    label = {} if preset is None else {"preset": preset}
    return yaml.safe_dump({**label, **config_to_dict(config)}, sort_keys=False)


def config_from_dict(values: dict[str, Any], cls: type = Config, prefix: str = "") -> Any:
    """The configuration of a dictionary as ``config_to_dict`` made it; absent keys take their defaults.

    Raises UserError for an unknown key and for a value that its key cannot have.
    """
    known = {f.name: hint for f, hint in zip(dataclasses.fields(cls), _hints(cls))}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(f"unknown configuration key {unknown[0]!r} in {cls.__name__}")
    made = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(known[key]):
            if not isinstance(value, dict):
                raise UserError(f"--{prefix}{key} is {value!r}: give its keys, as {prefix}{key}.NAME")
            value = config_from_dict(value, known[key], f"{prefix}{key}.")
        elif value is None and type(None) not in typing.get_args(known[key]):
            raise UserError(f"--{prefix}{key} is empty: give a value, or leave it out")
        made[key] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**made)
    except (TypeError, OverflowError, AttributeError) as error:
        raise UserError(f"--{prefix}*: a value of the wrong kind or size ({error})") from error


def _hints(cls: type) -> list[Any]:
    hints = typing.get_type_hints(cls)
    return [hints[f.name] for f in dataclasses.fields(cls)]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as ``{"optim.lr": 0.01, ...}``; ``model.kwargs`` and ``method_settings`` stay one value."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in FREE_MAPPINGS:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
