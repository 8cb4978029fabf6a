"""Functions of users' own that settings name."""

import importlib
from typing import Any

from rlhf_core.config.permissions import FUNCTIONS, allowed_functions
from rlhf_core.errors import ConfigError


def load_function(key: str, spec: str) -> Any:
    """Import the function that ``module:function`` names.

    Args:
        key: of the setting, for messages.
        spec: its value.

    Raises:
        ConfigError: this process may not load it, or there is no such module or function.
    """
    module, _, function = spec.partition(":")
    if not module or not function:
        raise ConfigError(f"{key}: expected module:function, found {spec!r}")
    if spec not in allowed_functions():
        raise ConfigError(
            f"{key}: {spec} may not be loaded here: the environment of the worker, or of the "
            f"command, lists what may; there set {FUNCTIONS}={spec} (several by commas)"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: {spec}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{key}: {spec} is not a function")
    return found
