"""Entries of the registry, found by reference; what is not there is said with what is."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from rlhf_core.adapters.registry.only_looking import is_only_looking
from rlhf_core.adapters.settings import mlflow_address
from rlhf_core.adapters.tracking.mlflow_client import (
    has_store,
    mlflow_client,
    with_retries,
)
from rlhf_core.errors import RegistryError
from rlhf_core.schema import CHAMPION, PREVIOUS
from rlhf_core.schema.model_uri import is_model_uri, split_model_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

UPSTREAM = "rlhf.upstream."
"""Prefix of tags: the model that a version was made or judged with, by role."""
_NEWEST = 5
"""Versions that are named where another was asked for."""

logger = logging.getLogger(__name__)


def find_version(reference: str) -> "ModelVersion":
    """Return the registry's entry for ``models:/name/3`` or ``models:/name@alias``.

    Raises:
        RegistryError: the reference is malformed or there is no such entry; says what there is.
    """
    name, number, alias = split_model_uri(reference)
    if not name or not (not number if alias else number.isdigit()):
        raise RegistryError(
            f"{reference!r} is not a model: expected models:/<name>/<version>, "
            "models:/<name>@<alias> or a folder"
        )
    if not alias:
        return _numbered_version(reference, name, number)
    model, what = _require_model(reference, name), f"finding {reference}"
    if alias in (CHAMPION, PREVIOUS) and _completed_release(name):
        model = with_retries(what, lambda: mlflow_client().get_registered_model(name))
    aliases = _as_seen(name, {key: str(value) for key, value in model.aliases.items()})
    if alias not in aliases:
        raise RegistryError(
            f"{reference}: {name} has no {alias} yet; aliases set: "
            + (", ".join(f"{key} -> {value}" for key, value in sorted(aliases.items())) or "none")
        )
    return with_retries(what, lambda: mlflow_client().get_model_version(name, aliases[alias]))


def _numbered_version(reference: str, name: str, number: str) -> "ModelVersion":
    if not has_store():
        _require_model(reference, name)
    find = partial(mlflow_client().get_model_version, name, number)
    try:
        return with_retries(f"finding {reference}", find)
    except RegistryError as error:
        if getattr(error.__cause__, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
            raise
        _require_model(reference, name)
        newest = _newest_versions(reference, name)
        raise RegistryError(
            f"{reference}: {name} has no version {number}; "
            + (f"newest: {', '.join(newest)}" if newest else "all of its versions were deleted")
        ) from error


def _newest_versions(reference: str, name: str) -> list[str]:
    search = partial(
        mlflow_client().search_model_versions,
        f"name = '{name}'",
        max_results=_NEWEST,
        order_by=["version_number DESC"],
    )
    return [str(version.version) for version in with_retries(f"finding {reference}", search)]


def _require_model(reference: str, name: str) -> "RegisteredModel":
    registered: list[RegisteredModel] = []
    if has_store():
        search = partial(mlflow_client().search_registered_models, f"name = '{name}'")
        registered = with_retries(f"finding {reference}", search)
    if not registered:
        where = mlflow_address()
        raise RegistryError(f"{reference}: no model {name!r} is registered yet at {where}")
    return registered[0]


def _as_seen(name: str, aliases: Mapping[str, str]) -> dict[str, str]:
    """Return where a version's aliases stand; to a dry run, where a move will have put them."""
    from rlhf_core.adapters.registry import release_aliases, releases

    project = releases.project_of(name)
    if project is None or not is_only_looking():
        return dict(aliases)
    others = {alias: n for alias, n in aliases.items() if alias not in (CHAMPION, PREVIOUS)}
    return others | release_aliases.champion_aliases(project)[name.rpartition("-")[2]]


def _completed_release(name: str) -> bool:
    """Complete a promotion or rollback that was killed; return whether there may have been one.

    Who may only read goes on with the aliases as they are.
    """
    from rlhf_core.adapters.registry import release_aliases, releases

    project = releases.project_of(name)
    if project is None:
        return False
    try:
        release_aliases.recover(project)
    except RegistryError as error:
        logger.warning("release_not_completed project=%s error=%s", project, error)
    return True


def upstream_uris(reference: str) -> dict[str, str]:
    """Registered models that a version was made or judged with, by role."""
    return {
        name.removeprefix(UPSTREAM): uri
        for name, uri in sorted(find_version(reference).tags.items())
        if name.startswith(UPSTREAM) and is_model_uri(uri)
    }
