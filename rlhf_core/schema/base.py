"""The one base class of records that cross a stage."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable; an unknown field is an error, so a renamed column cannot vanish."""

    # An interval may be open at one end; JSON has no number for that.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
