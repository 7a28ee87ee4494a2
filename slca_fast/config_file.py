"""A configuration as a plain dictionary, as YAML, and back."""

from __future__ import annotations

import dataclasses
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from slca_fast.bounded import MOST_DEPTH, read_bounded
from slca_fast.config import Config
from slca_fast.errors import UserError, did_you_mean

FREE_MAPPINGS = ("model.kwargs", "method_settings")
"""Keys whose values are mappings of names that the configuration does not know."""
_MOST_VALUES, _MOST_BYTES, _MOST_DIGITS = 10_000, 2**20, 1000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_TEXT, _INT = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int"


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
    return yaml.dump({**label, **config_to_dict(config)}, Dumper=_Dumper, sort_keys=False)


def config_from_dict(values: Mapping[str, Any], cls: type = Config, prefix: str = "") -> Any:
    """The configuration of a dictionary as ``config_to_dict`` made it; absent keys take their defaults.

    Raises UserError for an unknown key and for a value that its key cannot have.
    """
    known = typing.get_type_hints(cls)
    made = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"unknown key {prefix}{key}{did_you_mean(str(key), list(known), prefix)}")
        made[key] = _typed(value, known[key], f"{prefix}{key}")
    return cls(**made)


def _typed(value: Any, hint: Any, option: str) -> Any:
    """``value`` as a value of type ``hint``; raises UserError when it is none."""
    args = typing.get_args(hint)
    if type(None) in args:
        if value is None:
            return None
        return _typed(value, next(arg for arg in args if arg is not type(None)), option)
    if value is None:
        raise UserError(f"--{option} is empty: give a value, or leave it out")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"--{option} is {shown(value)}: give its keys, as {option}.NAME")
        return config_from_dict(value, hint, f"{option}.")
    if typing.get_origin(hint) is typing.Literal:
        if not isinstance(value, str) or value not in args:
            raise UserError(
                f"--{option} is {shown(value)}: give one of {', '.join(args)}{did_you_mean(str(value)[:40], args)}"
            )
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"--{option} is {shown(value)}: give a list")
        if ... not in args and len(value) != len(args):
            raise UserError(f"--{option} is {shown(value)}: give {len(args)} values")
        return tuple(_typed(part, args[0], option) for part in value)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise UserError(f"--{option} is {shown(value)}: give a mapping, as {{name: value}}")
        return {str(key): _plain_data(part, f"{option}.{key}") for key, part in value.items()}
    return _scalar(value, hint, option)


def _scalar(value: Any, hint: type, option: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"--{option} is {shown(value)}: give a smaller number") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"--{option} is {shown(value)}: give {_KINDS[hint]}")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"--{option} is {shown(value)}: no name holds a NUL character")
    return value


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text (in quotes, in YAML)"}


def _plain_data(value: Any, option: str) -> Any:
    """A value of a free mapping: what YAML and JSON both hold, and nothing else."""
    if isinstance(value, dict):
        return {str(key): _plain_data(part, f"{option}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(part, option) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"--{option} is {shown(value)}: give a number, a word, true, false, or a list or mapping of them")


def shown(value: Any) -> str:
    """A value as a message shows it: shortened, on one line."""
    return _SHORT.repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of many digits"


def holds_text(hint: Any) -> bool:
    """Whether a key of type ``hint`` holds words, so that what is written for it is taken literally."""
    if hint is str or typing.get_origin(hint) is typing.Literal:
        return True
    return type(None) in typing.get_args(hint) and any(holds_text(arg) for arg in typing.get_args(hint))


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


def flat_hints(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """The type of every key in dotted form."""
    flat = {}
    for name, hint in typing.get_type_hints(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            flat.update(flat_hints(hint, f"{prefix}{name}."))
        else:
            flat[prefix + name] = hint
    return flat


class _Loader(yaml.SafeLoader):
    """YAML 1.1 of plain data, and 1e-3 is a number."""


class _Dumper(yaml.SafeDumper):
    """What ``_Loader`` reads back as it was."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of configuration keys, not yet checked against them.

    Words stay words where a key holds words: ``cache: off`` is no boolean, ``name: 1e5`` no number. Raises UserError
    naming the file, and the line of a key that stands twice.
    """
    try:
        values = parse_yaml(read_bounded(path, _MOST_BYTES).decode(), str(path), Config)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: it is not UTF-8 text") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of configuration keys")
    return values


def parse_yaml(text: str, where: str, hint: Any = None) -> Any:
    """The value that YAML ``text`` of plain data holds; ``hint`` is the type of what is wanted, where known.

    Raises UserError, beginning with ``where``, for what is no YAML, too much of it, or names a key twice.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_node(node, hint, where, "", iter(range(_MOST_VALUES)))
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{where} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # PyYAML lets odd dates, numbers and tagged words through in their own ways.
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())[:300]}") from error


def _check_node(node: yaml.Node, hint: Any, where: str, path: str, left: Iterator[int], depth: int = 0) -> None:
    """Refuses repeated keys and aliases that unfold without end; marks as text what ``hint`` says is text."""
    if next(left, None) is None:
        raise UserError(f"{where} holds more than {_MOST_VALUES} values: that is no configuration")
    if depth > MOST_DEPTH:
        raise UserError(f"{where} is not valid YAML: it is nested too deeply")
    if isinstance(node, yaml.ScalarNode) and node.tag == _INT and len(node.value) > _MOST_DIGITS:
        raise UserError(f"{where}, line {node.start_mark.line + 1}: {path.rstrip('.')} is a number of many digits")
    if isinstance(node, yaml.MappingNode):
        hints = {"preset": str, **typing.get_type_hints(hint)} if dataclasses.is_dataclass(hint) else {}
        seen: dict[str, int] = {}
        for place, (key, value) in enumerate(node.value):
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{where}, line {line}: a key is a word, not a list or a mapping")
            name = f"{path}{key.value}"
            if key.value in seen:
                raise UserError(
                    f"{where}, line {line}: {name} stands in line {seen[key.value]} already; give every key once"
                )
            seen[key.value] = line
            merged = key.tag == "tag:yaml.org,2002:merge"
            inner = hint if merged else hints.get(key.value)
            word = yaml.ScalarNode(_TEXT, key.value, key.start_mark, key.end_mark)
            node.value[place] = (key if merged else word, _as_text(value) if holds_text(inner) else value)
            _check_node(value, inner, where, path if merged else f"{name}.", left, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        parts = [arg for arg in (hint, *typing.get_args(hint)) if typing.get_origin(arg) is tuple]
        inner = typing.get_args(parts[0])[0] if parts else hint
        for place, value in enumerate(node.value):
            node.value[place] = _as_text(value) if holds_text(inner) else value
            _check_node(value, inner, where, path, left, depth + 1)


def _as_text(node: yaml.Node) -> yaml.Node:
    """``node`` with its text for value; null stays null."""
    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        return node
    return yaml.ScalarNode(_TEXT, node.value, node.start_mark, node.end_mark, node.style)
