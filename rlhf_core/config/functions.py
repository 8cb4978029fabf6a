"""Functions of users' own that settings name."""

import hashlib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_core.config.permissions import FUNCTIONS, allowed_functions
from rlhf_core.errors import ConfigError


def load_function(key: str, spec: str) -> Any:
    """Import the function that ``module:function`` or ``file.py:function`` names.

    Args:
        key: of the setting, for messages.
        spec: its value.

    Raises:
        ConfigError: this process may not load it, or there is no such module or function.
    """
    module, function = _parts_of_allowed(key, spec)
    try:
        found = getattr(_load_module(module), function)
    except Exception as error:  # a module of the user's raises what it likes
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: {spec} cannot be loaded: {said}") from error
    if not callable(found):
        raise ConfigError(f"{key}: {spec} is not a function")
    return found


def function_sha256(key: str, spec: str) -> str:
    """Return a digest of the file that a function stands in; nothing of it is run.

    Raises:
        ConfigError: this process may not load it, or there is no such file or module.
    """
    module, _ = _parts_of_allowed(key, spec)
    place = module if module.endswith(".py") else _origin(module)
    if place is None:
        raise ConfigError(f"{key}: {spec}: there is no module {module}")
    try:
        return hashlib.sha256(Path(place).read_bytes()).hexdigest()
    except OSError as error:
        said = error.strerror or error
        raise ConfigError(f"{key}: {spec}: {place} cannot be read: {said}") from error


def _parts_of_allowed(key: str, spec: str) -> tuple[str, str]:
    module, _, function = spec.rpartition(":")
    if not module or not function:
        raise ConfigError(f"{key}: expected module:function or file.py:function, found {spec!r}")
    if spec not in allowed_functions():
        raise ConfigError(
            f"{key}: {spec} may not be loaded here: the environment of the worker, or of the "
            f"command, lists what may; there set {FUNCTIONS}={spec} (several by commas)"
        )
    return module, function


def _load_module(name: str) -> ModuleType:
    """Import a module by its name, or by its file, which no other import then finds."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    found = importlib.util.spec_from_file_location(Path(name).stem, name)
    if found is None or found.loader is None:
        raise ImportError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _origin(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return found.origin if found else None
