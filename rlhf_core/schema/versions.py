"""Published dataset versions."""

from pathlib import Path

from pydantic import Field

from rlhf_core.schema.base import Record


class DataVersion(Record):
    """One published dataset version."""

    version: str
    commit: str
    date: str
    batch: str | None
    """The annotation batch that came with it."""
    rows: int = Field(ge=0)
    """Comparisons read."""
    pairs: int = Field(ge=0)
    """Preference pairs prepared."""
    alpha: float | None
    """Krippendorff's alpha over all votes."""
    came: int = Field(ge=0)
    """Pairs that the version before did not have."""
    went: int = Field(ge=0)
    relabelled: int = Field(ge=0)
    """Pairs whose winner changed."""
    sha256: str
    dvc_md5: str


class BatchResult(Record):
    """What publishing a version did."""

    version: DataVersion
    directory: Path
    """Where its dataset lies on this machine."""
    set_aside: dict[str, int]
    """Rows of the batch that its reader could not use, by reason; kept in ``data/raw/set-aside``
    under the name of the batch."""
    branch_moved: bool
    """False where local changes kept the checked-out branch from moving to the new commit."""


class Withdrawal(Record):
    """What is to be taken out of the data."""

    annotators: tuple[str, ...] = ()
    """People whose votes go; a row without any vote left goes too."""
    rows: tuple[str, ...] = ()
    """Ids of rows that go."""
    sources: tuple[str, ...] = ()
    """Names of sources all of whose rows go."""


class WithdrawalResult(Record):
    """What a withdrawal did, and what was made of the data before."""

    published: BatchResult | None
    """None where the newest version is without it already."""
    changed_rows: dict[str, int]
    """Rows taken out or changed, by raw file."""
    versions: tuple[str, ...]
    """Earlier versions that hold the data; they stay in the history."""
    models: dict[str, tuple[str, ...]]
    """Registered models that were made from them, by version."""
