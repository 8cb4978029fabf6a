"""What a person chooses a run's settings by: a file of the repository, and lines that differ.

What came of the choice is kept with the run, by ``folder``.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from rlhf_core.config import PipelineConfig, PreparationConfig, load_config, load_preparation
from rlhf_core.config.written import split_settings
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Record

NO_SETTINGS = ("dvc.yaml", "params.yaml", "prefect.yaml")


def _offer_files(schema: dict[str, Any]) -> None:
    """Let the run form offer the project's settings files, and take another one as well.

    The form is made when the flows are deployed, in the project's folder.
    """
    found = (*Path().glob("*.yaml"), *Path("configs").glob("*.yaml"))
    files = sorted(
        path.as_posix()
        for path in found
        if path.name not in NO_SETTINGS and not path.name.startswith(".")
    )
    if files:
        other = {name: schema.pop(name) for name in ("type", "format") if name in schema}
        schema["anyOf"] = [
            {"title": "A file of the project", "type": "string", "enum": files},
            {"title": "Another file", **other},
        ]


class RunSettings(Record):
    """Which settings a run uses."""

    file: Path = Field(
        default=Path("configs/demo.yaml"),
        description="Settings file of the project's folder.",
        json_schema_extra=_offer_files,
    )
    overrides: tuple[str, ...] = Field(
        default=(),
        description="What differs from the file, KEY=VALUE a line, for example policy.kl_coef=0.1; "
        "checked before the first stage starts.",
    )
    changes: dict[str, Any] | None = Field(
        default=None,
        description="What differs as an object of sections, as schedules of earlier builds have "
        "it; overrides win.",
    )
    values: dict[str, Any] | None = Field(
        default=None,
        description="All settings at once, as a pipeline hands them to its stages; nothing of the "
        "above is read then.",
    )

    @cached_property
    def config(self) -> PipelineConfig:
        """The file with the changes, read once: within a process it stays this object.

        Raises:
            ConfigError: the file, a key or a value cannot be used.
        """
        if self.values is not None:
            return _whole(self.values)
        return load_config(self.file, self._changes())

    def load_preparation(self) -> PreparationConfig:
        """Read what preparation of data needs; the sections for training may be missing.

        Raises:
            ConfigError: as ``config``.
        """
        if self.values is not None:
            return _whole(self.values)
        return load_preparation(self.file, self._changes())

    def _changes(self) -> dict[str, str]:
        changes = {} if self.changes is None else dict(_dotted(self.changes))
        return changes | split_settings(self.overrides)


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
        elif value is not None:  # left empty in the form of an earlier build
            # JSON is YAML in which no text looks like a number.
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def flat_settings(settings: object, prefix: str = "") -> dict[str, str]:
    """Return ``section.key`` or ``section.list[0].key`` to the value's text, of nested settings."""
    if isinstance(settings, dict) and settings:
        parts = [(f"{prefix}.{name}" if prefix else name, settings[name]) for name in settings]
    elif isinstance(settings, list) and settings and isinstance(settings[0], dict):
        parts = [(f"{prefix}[{place}]", part) for place, part in enumerate(settings)]
    else:
        return {prefix: str(settings)}
    return {key: text for name, part in parts for key, text in flat_settings(part, name).items()}
