"""The one base class of settings, and the ranges they share."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "pattern": "matching {}",
}


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
        frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=say_limits
    )


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
