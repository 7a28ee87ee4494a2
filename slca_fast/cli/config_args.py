"""From preset or YAML file plus ``--a.b value`` overrides to a Config; misspelt keys get the nearest name."""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from slca_fast.config import Config
from slca_fast.config_file import config_from_dict, config_to_dict, flatten
from slca_fast.errors import UserError
from slca_fast.presets import PRESETS


@dataclass(frozen=True)
class Source:
    """A base configuration: a preset's or a file's."""

    name: str
    """The preset's name, or the file's without its suffix."""
    config: Config


def load_source(name: str) -> Source:
    """The preset called ``name``, or the YAML file of that path (its key ``preset`` may name a base)."""
    if name in PRESETS:
        return Source(name, PRESETS[name]())
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"there is no preset {name!r}{did_you_mean(name, list(PRESETS))}; see slca-fast presets, or give "
            f"a .yaml file"
        )
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of configuration keys")
    base_name = values.pop("preset", None)
    if base_name is not None and base_name not in PRESETS:
        raise UserError(f"{path}: there is no preset {base_name!r}{did_you_mean(str(base_name), list(PRESETS))}")
    base = PRESETS[base_name]() if base_name else Config()
    refuse_unknown(list(flatten(values)), str(path))
    name = base_name if path.name == "config.yaml" and base_name else path.stem
    return Source(name, parse_overrides(base, [], values))


def parse_overrides(base: Config, args: Sequence[str], values: dict[str, Any] | None = None) -> Config:
    """``base`` with the keys of ``values`` (nested) and then the ``--a.b value`` arguments of ``args`` replaced.

    Raises UserError naming the option for an unknown key or a value of the wrong type.
    """
    refuse_unknown([a[2:].split("=", 1)[0] for a in args if a.startswith("--")], "")
    parser = _parser()
    merged = _merge(config_to_dict(base), values or {})
    try:
        start = parser.parse_object(merged)
        parsed = parser.parse_args(list(args), namespace=start) if args else start
    except argparse.ArgumentError as error:
        raise UserError(_readable(error)) from error
    return config_from_dict(parsed.as_dict())


def refuse_unknown(keys: Sequence[str], where: str) -> None:
    """Raises UserError for the first key that no configuration has, with the nearest name."""
    known = known_keys()
    for key in keys:
        if key not in known and not key.startswith("model.kwargs."):
            shown = f"{where}: unknown key {key}" if where else f"unknown option --{key}"
            raise UserError(f"{shown}{did_you_mean(key, known, '' if where else '--')}")


@functools.cache
def known_keys() -> list[str]:
    """Every configuration key in dotted form."""
    return [*flatten(config_to_dict(Config()))]


@functools.cache
def _parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="slca-fast train", exit_on_error=False, add_help=False)
    parser.add_class_arguments(Config)
    return parser


def config_help() -> str:
    """The options of every configuration key with type, default and meaning."""
    return _parser().format_help().split("\n\n", 1)[-1]


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "kwargs"
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _readable(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.replace('Parser key "', "--").replace('":', ":", 1) if text.startswith('Parser key "') else text


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """``"; did you mean X?"`` with the nearest of ``known``, or nothing when none is near."""
    close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
