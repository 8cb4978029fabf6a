"""The one base class of settings, and the ranges they share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "pattern": "matching {}",
}
ABSURD = 2**32
"""No setting is a number beyond this, and most are far below it."""
_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4_000
"""What the usual file systems take: NAME_MAX, and PATH_MAX less what is added to a path."""


def say_limits(schema: dict[str, Any]) -> None:
    """Add the limits to the descriptions in a section's schema: forms enforce but do not show them.

    Args:
        schema: of a section, as pydantic's ``json_schema_extra`` gets it; changed in place.
    """
    for setting in schema.get("properties", {}).values():
        if limits := ", ".join(_limits(setting)):
            setting["description"] = f"{setting.get('description', '')} ({limits})".strip()


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    yield from (words.format(schema[rule]) for rule, words in LIMITS.items() if rule in schema)
    nested = (schema.get("items"), schema.get("additionalProperties"))
    for inner in (*schema.get("anyOf", ()), *nested):
        if isinstance(inner, dict):
            yield from _limits(inner)


class Section(BaseModel):
    """Immutable; an unknown key is an error, so a typo cannot fall back to a default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra=say_limits,
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _can_be_used(cls, value: object) -> object:
        if isinstance(value, int | float) and abs(value) > ABSURD:
            raise ValueError(f"no setting is a number beyond {ABSURD:,}")
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                _require_path(path)
        return value


def _require_path(path: Path) -> None:
    """Refuse what no file can be called, before something asks the system about it."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("a path holds no NUL character")
    if len(encoded) > _MAX_PATH_BYTES or len(max(encoded.split(b"/"), key=len)) > _MAX_NAME_BYTES:
        raise ValueError("longer than a path can be")


def _refuse_credentials(url: str) -> str:
    """Settings are logged with every run, so a password in them would be too."""
    if _holds_credentials(url):
        raise ValueError("no user and password in it; keys are environment variables")
    return url


def _holds_credentials(url: str) -> bool:
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError:  # a password that has / ? or # in it ends the host early
        return "@" in url
    return "@" in parts.netloc


WebAddress = Annotated[
    str, Field(pattern=r"^https?://[^/].*$"), AfterValidator(_refuse_credentials)
]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Resamples = Annotated[int, Field(ge=1, le=1_000_000)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Temperature = Annotated[float, Field(ge=0, le=100)]
