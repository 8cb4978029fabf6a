"""One YAML file, validated once."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from rlhf_core.config.pipeline import PipelineConfig, PreparationConfig
from rlhf_core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_ALTERNATIVES = ("algorithm", "kind")
"""Keys that say which of several sections one is."""

_Settings = TypeVar("_Settings", bound=PreparationConfig)


def load_config(path: Path, overrides: Mapping[str, str] | None = None) -> PipelineConfig:
    """Read ``path``, apply dotted ``overrides``, validate once.

    A file may begin with ``extends: other.yaml`` (relative to itself) and then says only what
    differs: sections merge key by key, except that a section whose ``algorithm`` or ``kind``
    changes is replaced, for its settings belong to the other one.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value breaks its
            rule; names file and key.
    """
    return _load(PipelineConfig, path, overrides)


def load_preparation(path: Path, overrides: Mapping[str, str] | None = None) -> PreparationConfig:
    """Read what preparation of data needs, as ``load_config`` does; the rest may be missing.

    Raises:
        ConfigError: as ``load_config``; sections that are there are checked all the same.
    """
    return _load(PreparationConfig, path, overrides)


def _load(kind: type[_Settings], path: Path, overrides: Mapping[str, str] | None) -> _Settings:
    raw = _read_extended(path, seen=())
    for dotted, value in (overrides or {}).items():
        _apply_override(raw, dotted, value)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(map(_in_words, error.errors(include_url=False)))
        raise ConfigError(f"{path}: {problems}") from error


def _in_words(problem: "ErrorDetails") -> str:
    """Key, what is wrong with it, and what was found, unless that is a whole section."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        return f"{key}: no such section in the settings, and this command needs it"
    words = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
    return f"{key}: {words}{found}" if key else words + found


def config_digest(config: PipelineConfig) -> str:
    """Return the sha256 of the canonical JSON of all that decides a run.

    Not of ``feedback``: no stage of a run reads it.
    """
    return hashlib.sha256(config.model_dump_json(exclude={"feedback"}).encode()).hexdigest()


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(raw).__name__}")
    return raw


def _read_extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(map(str, seen))}")
    raw = _read_mapping(path)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: expected a file name, found {parent!r}")
    return _merge(_read_extended(path.parent / parent, (*seen, path.resolve())), raw)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    if any(name in change and change[name] != base.get(name) for name in _ALTERNATIVES):
        return change
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        both_sections = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both_sections else value  # type: ignore[arg-type]
    return merged


def _apply_override(raw: dict[str, Any], dotted: str, value: str) -> None:
    *parents, leaf = dotted.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {dotted}: {parent!r} is a value, not a section")
    try:
        section[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {dotted}={value}: not a YAML value") from error
