"""``prompt``, ``chosen``, ``rejected``: the convention of TRL, UltraFeedback and Argilla exports.

Each is plain text or a list of messages. Lists may hold the whole conversation (then ``prompt`` is
optional) or the answer alone. Other columns are the publisher's and are left alone.
"""

from collections.abc import Iterable, Iterator

from rlhf_core.dataprep.rows import RawRow, Reason, SetAside
from rlhf_core.dataprep.sources.messages import parse_conversation, parse_messages
from rlhf_core.dataprep.sources.sides import decided_comparison
from rlhf_core.dataprep.sources.words import finite_number, parse_score, parse_strength
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, Conversation, Demonstration

ANNOTATOR = "published"
"""The one implied vote of every row is this annotator's."""

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
"""Where publishers keep the scores behind the choice; equal scores are a tie."""
_MARGIN = "margin"
"""The difference itself, as TRL's reward trainer reads it."""


def parse_comparisons(rows: Iterable[RawRow]) -> Iterator[Comparison | SetAside]:
    """Yield one comparison a row; the difference of scores, where given, is its strength."""
    for row in rows:
        lead_chosen, chosen = _answer(row, "chosen")
        lead_rejected, rejected = _answer(row, "rejected")
        if chosen is None or rejected is None:
            yield SetAside.of(row, "malformed_transcript", detail="no assistant turn at the end")
            continue
        prompt = _prompt(row, lead_chosen)
        problem: Reason | None = None
        if lead_chosen != lead_rejected:
            problem = "parts_before_last_turn"
        elif chosen.strip() == rejected.strip():
            problem = "identical_responses"
        if problem is not None:
            yield SetAside.of(row, problem)
            continue
        if prompt is None:
            yield SetAside.of(row, "malformed_transcript", detail="prompt and turns do not fit")
            continue
        yield decided_comparison(
            prompt,
            chosen,
            rejected,
            annotator=ANNOTATOR,
            place=(row.source, row.line),
            strength=_strength(row),
        )


def parse_demonstrations(rows: Iterable[RawRow]) -> Iterator[tuple[int, Demonstration]]:
    """Yield ``messages`` rows: the last assistant turn is the response."""
    for row in rows:
        turns = parse_messages(row, "messages")
        response = turns[-1].content if turns and turns[-1].role == "assistant" else ""
        yield (
            row.line,
            Demonstration(
                demonstration_id=f"{row.source}:{row.line}",
                prompt=turns[:-1],
                response=response,
                source=row.source,
            ),
        )


def _answer(row: RawRow, column: str) -> tuple[Conversation, str | None]:
    """Return the turns before the answer (none for plain text) and the answer."""
    row.require(column)
    value = row.value[column]
    if isinstance(value, str):
        return (), value
    if not isinstance(value, list):
        raise DataError(
            f"{row.where}: {column}: expected text or messages, found {type(value).__name__}"
        )
    turns = parse_messages(row, column)
    if not turns or turns[-1].role != "assistant":
        return turns, None
    return turns[:-1], turns[-1].content


def _prompt(row: RawRow, lead: Conversation) -> Conversation | None:
    """Return the conversation answered; None where ``prompt`` and the turns before it do not fit.

    Publishers repeat the prompt among the turns before the answer, or part of it, or split the
    conversation between the two. White space at the ends of a turn is no difference.
    """
    given = row.value.get("prompt")
    if given is None:
        if not lead:
            raise DataError(f"{row.where}: missing column 'prompt'; chosen holds the answer alone")
        return lead
    prompt = parse_conversation(row, "prompt")
    if not prompt or not lead:
        return lead or prompt
    told, repeated = _stripped(prompt), _stripped(lead)
    if any(repeated[i : i + len(told)] == told for i in range(len(lead))):
        return lead
    for shared in range(min(len(prompt), len(lead)), 0, -1):
        if told[-shared:] == repeated[:shared]:
            return (*prompt, *lead[shared:])
    follows = lead[0].role not in (prompt[-1].role, "system")
    return (*prompt, *lead) if follows else None


def _stripped(turns: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]


def _strength(row: RawRow) -> float | None:
    for better, worse in _SCORES:
        high, low = parse_score(row, better), parse_score(row, worse)
        if high is None or low is None:
            continue
        if high < low:
            raise DataError(
                f"{row.where}: {better} {high:g} is below {worse} {low:g};"
                " the chosen response must not score lower"
            )
        return finite_number(high - low)
    return parse_strength(row, _MARGIN, {})
