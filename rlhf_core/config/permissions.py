"""What of other people's code a process may run: its environment says so, and no setting does.

A setting may come from a run form, a configuration file or ``--set``; whoever fills those in need
not be trusted with the machine. So settings only name code, and the environment of the process
that would run it, a worker or a shell, lists what it may load.
"""

import os
from collections.abc import Iterable

from rlhf_core.errors import ConfigError

FUNCTIONS = "RLHF_ALLOWED_FUNCTIONS"
"""Names the variable with the functions that settings may name, by commas: ``module:function``
or ``file.py:function``."""
MODEL_CODE = "RLHF_TRUSTED_CODE"
"""Names the variable with the code of models, and of tasks, that may run, by commas: the commit of
a hub repository (40 hexadecimal digits), or for a folder the sha256 of its Python files (64); of
tasks in ``evaluation.suites`` the sha256 that their refusal names."""
OWN_FUNCTIONS = ("rlhf_core.demo.annotators:collect_votes", "rlhf_core.demo.gold:rate")
"""The product's own, which the shipped demo names: always allowed."""

_COMMIT, _SHA256 = 40, 64


def allowed_functions() -> tuple[str, ...]:
    """Return the functions that settings may name here.

    Raises:
        ConfigError: the variable names a whole module; one function would have been meant.
    """
    named = _listed(FUNCTIONS)
    for name in named:
        module, _, function = name.rpartition(":")
        parts = (function,) if module.endswith(".py") else (*module.split("."), function)
        if not all(part.isidentifier() for part in parts):
            raise ConfigError(
                f"{FUNCTIONS}: expected module:function or file.py:function by commas, found "
                f"{name!r}"
            )
    return tuple(sorted({*OWN_FUNCTIONS, *named}))


def trusted_code() -> frozenset[str]:
    """Return the commits and digests of model code that may run here.

    Raises:
        ConfigError: the variable holds something that names no commit and no digest.
    """
    named = [name.lower() for name in _listed(MODEL_CODE)]
    for name in named:
        if len(name) not in (_COMMIT, _SHA256) or set(name) - set("0123456789abcdef"):
            raise ConfigError(
                f"{MODEL_CODE}: expected the commit of a hub repository (40 hexadecimal digits) or "
                f"the sha256 of a folder's Python files (64), found {name!r}"
            )
    return frozenset(named)


def trusted_commits(trusted: Iterable[str]) -> frozenset[str]:
    """Return those that are commits of hub repositories."""
    return frozenset(name for name in trusted if len(name) == _COMMIT)


def _listed(variable: str) -> list[str]:
    return [name for part in os.environ.get(variable, "").split(",") if (name := part.strip())]
