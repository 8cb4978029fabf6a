"""How a model of the registry is written: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``."""

from typing import NamedTuple

_SCHEME = "models:/"


class NamedModel(NamedTuple):
    """The parts of a reference; what it does not say is empty."""

    name: str
    version: str
    alias: str


def version_uri(name: str, version: str | int) -> str:
    """Return ``models:/<name>/<version>``."""
    return f"{_SCHEME}{name}/{version}"


def alias_uri(name: str, alias: str) -> str:
    """Return ``models:/<name>@<alias>``."""
    return f"{_SCHEME}{name}@{alias}"


def is_model_uri(reference: str) -> bool:
    """Return whether a reference is to the registry, and to no folder or hub."""
    return reference.startswith(_SCHEME)


def without_scheme(reference: str) -> str:
    """Return ``<name>/<version>`` or ``<name>@<alias>``; what is no URI as it is."""
    return reference.removeprefix(_SCHEME)


def split_model_uri(reference: str) -> NamedModel:
    """Take a reference apart; whether its parts make one is not checked."""
    name, _, alias = without_scheme(reference).partition("@")
    name, _, version = name.partition("/")
    return NamedModel(name, version, alias)
