r"""HH-RLHF as published: two whole transcripts a row (Bai et al. 2022, arXiv:2204.05862).

    {"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": "..."}

The pair is a comparison only where both transcripts agree up to the last turn.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.rows import RawRow, Reason, SetAside
from rlhf_core.dataprep.sources.sides import decided_comparison
from rlhf_core.schema import Comparison, Conversation, Demonstration, Message

ANNOTATOR = "hh"
"""The one implied vote of every row is this annotator's."""

_MARKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}


def parse_comparisons(rows: Iterable[RawRow]) -> Iterator[Comparison | SetAside]:
    """Yield one comparison a row, with one vote for the published choice."""
    for row in rows:
        texts = row.text("chosen"), row.text("rejected")
        chosen, rejected = (parse_transcript(text) for text in texts)
        problem = _problem(texts[0] == texts[1], chosen, rejected)
        if problem is not None:
            yield SetAside.of(row, problem)
            continue
        yield decided_comparison(
            chosen[:-1],
            chosen[-1].content,
            rejected[-1].content,
            annotator=ANNOTATOR,
            place=(row.source, row.line),
        )


def parse_demonstrations(rows: Iterable[RawRow]) -> Iterator[tuple[int, Demonstration]]:
    """Yield the chosen transcripts as demonstrations of their last turn."""
    for row in rows:
        turns = parse_transcript(row.text("chosen"))
        response = turns[-1].content if turns and turns[-1].role == "assistant" else ""
        yield (
            row.line,
            Demonstration(
                demonstration_id=content_id("hh", row.text("chosen")),
                prompt=turns[:-1],
                response=response,
                source=row.source,
            ),
        )


def parse_transcript(text: str) -> Conversation:
    """Split a transcript into turns; empty when it does not begin with a speaker's mark."""
    preamble, *rest = _MARKER.split(text)
    if preamble.strip():
        return ()
    return tuple(
        Message(role=_ROLES[speaker], content=content.strip())
        for speaker, content in zip(rest[::2], rest[1::2], strict=True)
    )


def _problem(identical: bool, chosen: Conversation, rejected: Conversation) -> Reason | None:
    if any(not turns or turns[-1].role != "assistant" for turns in (chosen, rejected)):
        return "malformed_transcript"
    if identical:
        return "identical_responses"
    if not chosen[-1].content or not rejected[-1].content:
        return "empty_response"
    return "parts_before_last_turn" if chosen[:-1] != rejected[:-1] else None
