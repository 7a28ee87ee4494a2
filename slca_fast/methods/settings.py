"""Settings that belong to one method alone: the configuration's ``method_settings``, typed by the method."""

from __future__ import annotations

import dataclasses
from typing import Any

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
    return config_from_dict(given, cls, f"{OPTION}.")
