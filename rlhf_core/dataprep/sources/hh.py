r"""HH-RLHF as published: two whole transcripts a row (Bai et al. 2022, arXiv:2204.05862).

    {"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": "..."}

The pair is a comparison only where both transcripts agree up to the last turn.
"""

from collections.abc import Iterator

from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.sources.messages import parse_transcript
from rlhf_core.dataprep.sources.responses import decided_comparison
from rlhf_core.dataprep.sources.rows import RawRow, Reason, UnusableRow
from rlhf_core.schema import Comparison, Conversation, Demonstration

ANNOTATOR = "hh"
"""The one implied vote of every row is this annotator's."""


def comparisons_of(row: RawRow) -> Iterator[Comparison]:
    """Yield one comparison, with one vote for the published choice."""
    texts = row.text("chosen"), row.text("rejected")
    chosen, rejected = (parse_transcript(text) for text in texts)
    problem = _problem(texts[0] == texts[1], chosen, rejected)
    if problem is not None:
        raise UnusableRow(problem, "")
    yield decided_comparison(
        chosen[:-1],
        chosen[-1].content,
        rejected[-1].content,
        annotator=ANNOTATOR,
        place=(row.source, row.line),
    )


def demonstration_of(row: RawRow) -> Demonstration:
    """Return the chosen transcript as a demonstration of its last turn."""
    turns = parse_transcript(row.text("chosen"))
    response = turns[-1].content if turns and turns[-1].role == "assistant" else ""
    return Demonstration(
        demonstration_id=content_id("hh", row.text("chosen")),
        prompt=turns[:-1],
        response=response,
        source=row.source,
    )


def _problem(identical: bool, chosen: Conversation, rejected: Conversation) -> Reason | None:
    if any(not turns or turns[-1].role != "assistant" for turns in (chosen, rejected)):
        return "malformed_transcript"
    if identical:
        return "identical_responses"
    if not chosen[-1].content or not rejected[-1].content:
        return "empty_response"
    return "parts_before_last_turn" if chosen[:-1] != rejected[:-1] else None
