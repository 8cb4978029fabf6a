"""What collecting, pushing and pulling hand to the person who asked for it."""

from pathlib import Path

from pydantic import Field

from rlhf_core.feedback.collection import Collection
from rlhf_core.schema import BatchResult, Estimate, Record


class CollectedPairs(Record):
    """A collection that was made, or was there."""

    collection: Collection
    folder: Path


class PushResult(Record):
    """What a push of labels did."""

    collection_id: str
    labeler: str
    """``simulated``, ``ai:<model>`` or ``label_studio``."""
    pairs: int
    before: int
    """Pairs that had been asked about, or sent, by an earlier push."""
    asked: int
    """Pairs asked about, or sent, by this one."""
    waits: bool
    """True where people answer later: pull brings what there is by then."""
    place: str | None = None
    """Where people label."""
    without_vote: int = 0
    """Pairs on which no answer could be read; they keep the reason, and are asked again where
    that is asked for."""
    order_dependent: float | None = None
    """AI judge: share of its votes that are ties because the verdict changed with the order."""
    tokens: int | None = None
    """AI judge: tokens of this push's questions and answers, as the endpoint counts them."""


class PullResult(Record):
    """What a pull of labels found and did."""

    collection_id: str
    pairs: int
    pairs_by_votes: dict[int, int]
    """Number of votes to the pairs that have so many; 0 for those that wait for their first."""
    votes_per_pair: int
    """Votes a pair needs."""
    published_before: int
    """Pairs that an earlier pull made part of a version; later votes on them are not read."""
    late_votes: int
    """Votes on those that came after."""
    set_aside: int = 0
    """Answers that cannot be read and count for nothing; `set-aside.jsonl` says why."""
    ready: int
    """Pairs that have the votes and were in no version before this pull."""
    needed: int = 1
    """So many of them it takes before anything is published."""
    alpha: Estimate | None
    """Krippendorff's alpha over all votes."""
    judges: dict[str, Estimate] = Field(default_factory=dict)
    """Alpha between an AI judge and people, where both voted."""
    preferred: dict[str, int] = Field(default_factory=dict)
    """Votes for the answers of each model, where two were compared, and ``tie``."""
    output: Path | None = None
    """File the batch was written to instead of being published."""
    published: BatchResult | None = None
    """The new version; None where nothing was published."""
    last_version: str | None = None
    """Newest version with pairs of the collection, by this pull or an earlier one."""
    evaluation: str | None = None
    """Run whose evaluation keeps the votes, where the answers are its own: nothing is published."""
    kept: int = 0
    """Pairs with votes that it keeps, those of two equal answers included."""
