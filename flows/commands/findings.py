"""One line of an examination of the set-up."""

from pydantic import Field

from rlhf_core.schema import Record


class Finding(Record):
    """What was looked at, and what to do where it is not healthy."""

    what: str
    healthy: bool
    found: str
    fix: str = Field(default="")
    """What to do; empty when healthy."""
