"""Settings that belong to one method alone: the configuration's ``method_settings``, typed by the method."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentError
from typing import Any

from jsonargparse import ArgumentParser

from slca_fast.config import Config
from slca_fast.config_file import config_from_dict
from slca_fast.errors import UserError

OPTION = "method_settings"


def settings_of(config: Config, cls: type | None) -> Any:
    """``config.method_settings`` as the method's dataclass ``cls``, absent keys at their defaults; None without one.

    Raises UserError naming the key that the method does not have, or whose value it cannot take.
    """
    given = config.method_settings
    if cls is None:
        if given:
            raise UserError(f"--{OPTION}.{next(iter(given))}: method {config.method} has no settings of its own")
        return None
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            raise UserError(f"--{OPTION}.{key}: method {config.method} has {', '.join(known)}")
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(cls)
    try:
        values = parser.parse_object(dict(given)).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        text = " ".join(str(error).split()).removeprefix("Parser key ")
        raise UserError(f"--{OPTION}.*: {text}") from error
    return config_from_dict(values, cls, f"{OPTION}.")
