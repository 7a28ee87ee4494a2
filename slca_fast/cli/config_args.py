"""From preset or YAML file plus ``--a.b value`` overrides to a Config; misspelt keys get the nearest name."""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from slca_fast.cli.paths import user_path
from slca_fast.config import Config
from slca_fast.config_file import (
    FREE_MAPPINGS,
    config_from_dict,
    config_to_dict,
    flat_hints,
    flatten,
    holds_text,
    parse_yaml,
    read_config_file,
)
from slca_fast.datasets import recipes
from slca_fast.errors import UserError, did_you_mean
from slca_fast.methods.presets import PRESETS
from slca_fast.runs.old_runs import with_method

KWARGS_HELP = """
Lists are written 1,2 or [1,2]. --model.kwargs.KEY VALUE changes one argument of the model; --model.kwargs {..} and the
mapping model.kwargs of a YAML file replace all of them. Words (paths, names) are taken literally; null means none.
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
    path = user_path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"there is no preset {name!r}{did_you_mean(name, list(PRESETS))}; see slca-fast presets, or give "
            f"a .yaml file"
        )
    values = read_config_file(path)
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
    merged = _merge(config_to_dict(base), values or {})
    for key, text in _pairs(args):
        *sections, name = key.split(".") if key in known_keys() else [*_free_key(key)]
        place = merged
        for section in sections:
            place = place[section]
        place[name] = _value(key, text)
    return config_from_dict(merged)


def _pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """``(key, text)`` of every ``--key=text`` or ``--key text``."""
    left = iter(args)
    for arg in left:
        if not arg.startswith("--"):
            raise UserError(f"{arg}: options begin with two dashes, as --optim.lr 0.01")
        option, equals, text = arg.partition("=")
        refuse_unknown([option[2:]], "")
        if not equals:
            text = next(left, "--")
            if text.startswith("--"):
                raise UserError(f"{option}: give a value")
        yield option[2:], text


def _free_key(key: str) -> tuple[str, ...]:
    """The path to a key of a free mapping: its own name may hold dots."""
    free = next(free for free in FREE_MAPPINGS if key.startswith(f"{free}."))
    return (*free.split("."), key[len(free) + 1 :])


def _value(key: str, text: str) -> Any:
    """The value that ``text`` on the command line means: words stay as they are, the rest is YAML."""
    hint = flat_hints().get(key)
    if hint is None and text == "":
        return text
    if text == "null" or not holds_text(hint):
        in_list = tuple in {typing.get_origin(part) for part in (hint, *typing.get_args(hint))}
        shown = text if text.isprintable() else repr(text)
        return parse_yaml(_bracketed(text) if in_list else text, f"--{key} {shown}", hint)
    if text == "":
        raise UserError(f"--{key} is empty: give a value, or leave it out")
    return text


def _bracketed(text: str) -> str:
    """``text`` with ``1,2`` written ``[1,2]``."""
    return text if text.lstrip().startswith(("[", "(")) or text in ("null", "None", "") else f"[{text}]"


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


@functools.cache
def known_keys() -> list[str]:
    """Every configuration key in dotted form."""
    return [*flat_hints()]


def config_help() -> str:
    """The options of every configuration key with type, default and meaning."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="slca-fast train", add_help=False)
    parser.add_class_arguments(Config)
    text = parser.format_help().split("\n\n", 1)[-1]
    # jsonargparse offers a file for each section; here one YAML file holds them all.
    text = re.sub(r"^  --[\w.]+ CONFIG +.*\n", "", text, flags=re.MULTILINE)
    return f"{text}\n--data.recipe takes {', '.join(recipes())}.{KWARGS_HELP}"


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "kwargs"
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
