"""The form in which a person chooses settings: a file of the repository, and what differs from it.

``SettingChanges`` is made from ``PipelineConfig`` itself, every field optional: what the settings
can say, the form can say, with the same descriptions, types, choices and limits.
"""

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from rlhf_core.config import PipelineConfig, PreparationConfig, load_config, load_preparation
from rlhf_core.config.base import say_limits
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Record


def every_field_optional(section: type[BaseModel]) -> type[BaseModel]:
    """Return ``section`` with the same fields, each of which may be left empty, at every level."""
    fields: dict[str, Any] = {
        name: (_optional(info), Field(default=None, description=_described(info)))
        for name, info in section.model_fields.items()
    }
    return create_model(
        f"{section.__name__.removesuffix('Config')}Changes",
        __config__=ConfigDict(frozen=True, extra="forbid", json_schema_extra=say_limits),
        __doc__=_first_line(section),
        **fields,
    )


def _optional(info: FieldInfo) -> Any:
    members = _members(info.annotation)
    if any(_is_section(member) for member in members):
        return reduce(
            or_,
            [every_field_optional(member) if _is_section(member) else member for member in members],
            None,
        )
    if not info.metadata:
        return Optional[info.annotation]  # noqa: UP045 - a string annotation has no ``|``
    return Annotated[info.annotation, *info.metadata] | None


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return tuple(member for member in get_args(annotation) if member is not NoneType)
    return (annotation,)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _described(info: FieldInfo) -> str | None:
    """Return the description; a section without one of its own is what its class says."""
    sections = [member for member in _members(info.annotation) if _is_section(member)]
    return info.description or (_first_line(sections[0]) if sections else None)


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


if TYPE_CHECKING:
    SettingChanges = BaseModel
else:
    SettingChanges = every_field_optional(PipelineConfig)


class RunSettings(Record):
    """Which settings a run uses."""

    file: Path = Field(
        default=Path("configs/demo.yaml"),
        description="Settings file, relative to the project's folder.",
    )
    changes: SettingChanges | None = Field(
        default=None, description="What differs from the file; what is left empty stays as it says."
    )
    overrides: tuple[str, ...] = Field(
        default=(),
        description="The same in short: KEY=VALUE, for example policy.kl_coef=0.1. Wins over both.",
    )

    values: dict[str, Any] | None = Field(
        default=None,
        description="All settings at once, as a pipeline hands them to its stages; nothing of the "
        "above is read then.",
    )

    def load(self) -> PipelineConfig:
        """Read the file with the changes.

        Raises:
            ConfigError: the file, a key or a value cannot be used.
        """
        if self.values is not None:
            return _whole(self.values)
        return load_config(self.file, self._changes())

    def load_preparation(self) -> PreparationConfig:
        """Read what preparation of data needs; the sections for training may be missing.

        Raises:
            ConfigError: as ``load``.
        """
        if self.values is not None:
            return _whole(self.values)
        return load_preparation(self.file, self._changes())

    def _changes(self) -> dict[str, str]:
        changes: dict[str, str] = {}
        given: dict[str, str] = {}
        if self.changes is not None:
            changes |= dict(_dotted(self.changes.model_dump(mode="json", exclude_none=True)))
        for override in self.overrides:
            key, equals, value = override.partition("=")
            if not (key and equals):
                raise ConfigError(f"override {override!r}: expected KEY=VALUE")
            for other in given:
                if other == key or other.startswith(f"{key}."):
                    raise ConfigError(
                        f"--set {override}: {other} is set to {given[other]} already; keep one"
                    )
            given[key] = value
        return changes | given


def _whole(values: Mapping[str, Any]) -> PipelineConfig:
    try:
        return PipelineConfig.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"settings.values: {place}: {first['msg']}") from error


def _dotted(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            # JSON is YAML in which no text looks like a number.
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)
