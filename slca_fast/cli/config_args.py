"""From preset or YAML file plus ``--a.b value`` overrides to a Config; misspelt keys get the nearest name."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from slca_fast.config import Config
from slca_fast.config_file import FREE_MAPPINGS, config_from_dict, config_to_dict, flatten
from slca_fast.datasets import recipes
from slca_fast.errors import UserError, did_you_mean
from slca_fast.methods.presets import PRESETS
from slca_fast.runs.old_runs import with_method

_MOST_VALUES = 10_000
KWARGS_HELP = """
Lists are written 1,2 or [1,2]. --model.kwargs.KEY VALUE changes one argument of the model; --model.kwargs {..} and the
mapping model.kwargs of a YAML file replace all of them.
"""


@dataclass(frozen=True)
class Source:
    """A base configuration: a preset's or a file's."""

    name: str
    """The preset's name, or the file's without its suffix."""
    config: Config
    of_run: bool = False
    """Whether it is the config.yaml that a run has left in its folder."""


def load_source(name: str) -> Source:
    """The preset called ``name``, or the YAML file of that path.

    A file's key ``preset`` names its base; a run's own config.yaml holds every key, so there it is the run's label.
    """
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # PyYAML lets odd dates and numbers through as ValueError.
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of configuration keys")
    _refuse_monster(values, str(path))
    label = values.pop("preset", None)
    if label is not None and not isinstance(label, str):
        raise UserError(f"{path}: preset is {label!r}: name one preset; slca-fast presets lists them")
    of_run = _is_of_run(path, values)
    if label is not None and label not in PRESETS and not of_run:
        raise UserError(f"{path}: there is no preset {label!r}{did_you_mean(label, list(PRESETS))}")
    base = PRESETS[label]() if label in PRESETS and not of_run else Config()
    values = with_method(values) if of_run else values
    values = _without_empty_sections(values, config_to_dict(base))
    refuse_unknown(list(flatten(values)), str(path))
    return Source(label if of_run and label else path.stem, parse_overrides(base, [], values), of_run)


def _is_of_run(path: Path, values: dict[str, Any]) -> bool:
    output = values.get("output")
    if path.name != "config.yaml" or not isinstance(output, str):
        return False
    # The second: a run folder that was moved, or is named from another working directory.
    return Path(output).resolve() == path.parent.resolve() or (path.parent / "checkpoints").is_dir()


def _without_empty_sections(values: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """``values`` without the sections that YAML reads as null because nothing stands below their name."""
    kept = {}
    for key, value in values.items():
        section = base.get(key)
        if value is None and isinstance(section, dict):
            continue
        if isinstance(value, dict) and isinstance(section, dict):
            value = _without_empty_sections(value, section)
        kept[key] = value
    return kept


def parse_overrides(base: Config, args: Sequence[str], values: dict[str, Any] | None = None) -> Config:
    """``base`` with the keys of ``values`` (nested) and then the ``--a.b value`` arguments of ``args`` replaced.

    Raises UserError naming the option for an unknown key or a value of the wrong type.
    """
    refuse_unknown([a[2:].split("=", 1)[0] for a in args if a.startswith("--")], "")
    parser = _parser()
    merged = _merge(config_to_dict(base), values or {})
    try:
        start = parser.parse_object(merged)
        parsed = parser.parse_args(_with_brackets(args), namespace=start) if args else start
    except (argparse.ArgumentError, TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        # A value of a wrong shape fails in the parser's own ways.
        raise UserError(_readable(error)) from error
    return config_from_dict(parsed.as_dict())


def _refuse_monster(values: Any, where: str) -> None:
    """Raises UserError for aliases that unfold to more than any configuration holds, and for keys that are no text."""
    left, waiting = _MOST_VALUES, [values]
    while waiting:
        value = waiting.pop()
        left -= 1
        if left < 0:
            raise UserError(f"{where} holds more than {_MOST_VALUES} values: that is no configuration")
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:
                raise UserError(f"{where}: unknown key {odd[0]!r}; keys are words")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def refuse_unknown(keys: Sequence[str], where: str) -> None:
    """Raises UserError for the first key that no configuration has, with the nearest name."""
    known = known_keys()
    for key in keys:
        if key not in known and not key.startswith(tuple(f"{free}." for free in FREE_MAPPINGS)):
            shown = f"{where}: unknown key {key}" if where else f"unknown option --{key}"
            raise UserError(f"{shown}{did_you_mean(key, known, '' if where else '--')}")


def split_names(argv: Sequence[str], flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """The plain names among ``argv``, wherever they stand, and the rest: options, each with its value.

    ``flags``: the options that take no value.
    """
    names: list[str] = []
    rest: list[str] = []
    takes_value = False
    for arg in argv:
        if arg.startswith("--") or (arg.startswith("-") and not takes_value):
            takes_value = "=" not in arg and arg not in (*flags, "-h")
            rest.append(arg)
        else:
            (rest if takes_value else names).append(arg)
            takes_value = False
    return names, rest


def _with_brackets(args: Sequence[str]) -> list[str]:
    """``args`` with ``1,2`` written ``[1,2]`` where the configuration holds a list."""
    lists, done, before = _list_options(), [], ""
    for arg in args:
        option, equals, value = arg.partition("=")
        if equals and option in lists:
            arg = f"{option}={_bracketed(value)}"
        elif before in lists:
            arg = _bracketed(arg)
        done.append(arg)
        before = arg
    return done


def _bracketed(value: str) -> str:
    return value if value.lstrip().startswith(("[", "(")) or value in ("null", "None", "") else f"[{value}]"


@functools.cache
def _list_options(cls: type = Config, prefix: str = "--") -> frozenset[str]:
    found: set[str] = set()
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= _list_options(hint, f"{prefix}{name}.")
        elif tuple in {typing.get_origin(part) for part in (hint, *typing.get_args(hint))}:
            found.add(f"{prefix}{name}")
    return frozenset(found)


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
    text = _parser().format_help().split("\n\n", 1)[-1]
    # jsonargparse offers a file for each section; here one YAML file holds them all.
    text = re.sub(r"^  --[\w.]+ CONFIG +.*\n", "", text, flags=re.MULTILINE)
    return f"{text}\n--data.recipe takes {', '.join(recipes())}.{KWARGS_HELP}"


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "kwargs"
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _readable(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.replace('Parser key "', "--").replace('":', ":", 1) if text.startswith('Parser key "') else text
