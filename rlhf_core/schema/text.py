"""Texts that people wrote, asked or compared."""

import json
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rlhf_core.schema.base import Record

Role = Literal["system", "developer", "user", "assistant", "tool"]
"""Not every chat template renders all of them; where one does not, the row is filtered out."""
Choice = Literal["a", "b", "tie"]


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]


def _answer_of(value: object) -> object:
    """Take a number for the text of it, as many files have answers; lists and the like as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


class Prompt(Record):
    """A conversation that ends with the user's turn; the policy answers it."""

    prompt_id: str
    prompt: Conversation
    tags: dict[str, str] = Field(default_factory=dict)
    """Free labels such as ``style``; reports break their tables down by them."""
    reference: Annotated[str | None, BeforeValidator(_answer_of)] = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """The right answer, where there is one: reward functions are given it, models never see it. A
    list of right answers, or what else is no text in the file, is the JSON of it."""


class Demonstration(Record):
    """A prompt with a response worth imitating."""

    demonstration_id: str
    prompt: Conversation
    response: str
    source: str = ""


class UnpairedExample(Record):
    """A response that somebody called good or bad by itself: no pair, and no vote."""

    example_id: str
    prompt: Conversation
    response: str
    label: bool
    """True: desirable."""
    source: str = ""


UNNAMED = "unnamed"
"""Annotator of a vote whose source does not say who gave it. Two such votes are two people's."""


def annotator_name(value: object) -> str:
    """Return the name of an annotator, a number as text; ``UNNAMED`` where there is none.

    White space around a name is no part of it, and what a table reads as 3.0 is 3.
    """
    if value is None or value != value:
        return UNNAMED
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or UNNAMED


def _name_of(value: object) -> object:
    if type(value) is str:
        return value.strip() or UNNAMED
    return annotator_name(value) if value is None or isinstance(value, str | int | float) else value


AI_JUDGE = "ai:"
"""How the names of AI judges begin, among annotators."""


class Vote(Record):
    """One person's (or judge's) verdict on one comparison."""

    annotator: Annotated[str, BeforeValidator(_name_of)]
    choice: Choice
    strength: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How much better, on the source's own scale; None where the source does not say."""
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Time the annotator took, in seconds."""


class Comparison(Record):
    """Two responses to one prompt and the votes on them; which side won is not decided yet."""

    comparison_id: str
    prompt: Conversation
    response_a: str
    response_b: str
    votes: tuple[Vote, ...]
    source: str = ""
    line: int | None = None
    """Line (1-based) or row of the source file, for messages and quarantine."""
    group: str = ""
    """Comparisons made of one ranked list share it; empty where there is no list."""
    tags: dict[str, str] = Field(default_factory=dict, exclude_if=lambda tags: not tags)
    """Free labels, as a prompt's; where there are none they are not written."""

    @property
    def votes_a(self) -> int:
        """Votes for the first response."""
        return sum(vote.choice == "a" for vote in self.votes)

    @property
    def votes_b(self) -> int:
        """Votes for the second response."""
        return sum(vote.choice == "b" for vote in self.votes)


class PreferencePair(Record):
    """A resolved comparison: from here on nobody asks which side won."""

    comparison_id: str
    prompt: Conversation
    chosen: str
    rejected: str
    agreement: float = Field(ge=0.0, le=1.0)
    """Share of the votes for ``chosen``, a tie being half a vote for each side; below one half
    where a vote model trusts the few more than the many."""
    probability: float = Field(default=1.0, ge=0.5, le=1.0)
    """Probability that ``chosen`` is truly better, as the vote model estimates it (soft label)."""
    num_votes: int = Field(default=1, ge=1)
    tie_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of all votes that called it a tie."""
    strength: float | None = Field(default=None, ge=0)
    """How much better, mean over the votes for ``chosen`` that say it; the source's own scale."""
    source: str = ""
    group: str = ""
    """Pairs of one ranked list share it and follow one another in the file."""
    tags: dict[str, str] = Field(default_factory=dict, exclude_if=lambda tags: not tags)
    """Free labels, as a prompt's; where there are none they are not written."""
