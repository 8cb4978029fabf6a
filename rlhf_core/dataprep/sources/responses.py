"""Two answers to one conversation, however a row writes them; and sources that publish a winner."""

from typing import Any

from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.dataprep.sources.messages import (
    answer_of,
    parse_conversation,
    prompt_transcript,
    readable,
    texts_of,
    with_context,
)
from rlhf_core.dataprep.sources.rows import RawRow, UnusableRow
from rlhf_core.schema import Choice, Comparison, Conversation, Message, Vote


def parse_responses(row: RawRow, first: str, second: str) -> tuple[Conversation, str, str]:
    """Return the conversation answered and the two answers that two columns hold.

    Each is text, a message, or messages: the answer alone, or the whole conversation. Where one is
    a conversation and the other an answer, both answer the same.

    Raises:
        UnusableRow: a column is missing or none of these, or the conversations part earlier.
    """
    row.require(first, second)
    rounds = _rounds(row, first), _rounds(row, second)
    (lead, one), (other_lead, two) = (
        given or answer_of(_single(row, column), column)
        for given, column in zip(rounds, (first, second), strict=True)
    )
    if lead and other_lead and lead != other_lead:
        raise UnusableRow("parts_before_last_turn", "")
    if all(rounds):
        prompt: Conversation | None = lead
    else:
        prompt = _prompt(row, lead or other_lead, first)
    if prompt is None:
        raise UnusableRow("malformed_transcript", "prompt and turns do not fit")
    text = row.value.get("prompt")
    if isinstance(text, str) and prompt_transcript(text):
        one, two = one.strip(), two.strip()
    return with_context(row, prompt), one, two


def _single(row: RawRow, column: str) -> Any:
    """Return a column's value; of a list of one text, the text."""
    value = readable(row, row.value[column])
    texts = texts_of(row, column)
    return texts[0] if len(texts) == 1 else value


def _rounds(row: RawRow, column: str) -> tuple[Conversation, str] | None:
    """Return lead and answer of a conversation given as two lists, of prompts and of answers."""
    asked, answered = texts_of(row, "prompt"), texts_of(row, column)
    if len(asked) < 1 or len(asked) != len(answered):
        return None
    if not all(text.strip() for text in answered[:-1]):
        raise UnusableRow("empty_response", f"{column}: an earlier answer is missing")
    turns: list[Message] = []
    for question, answer in zip(asked, answered, strict=True):
        turns += [
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        ]
    row.value[column]
    row.value["prompt"]
    return tuple(turns[:-1]), turns[-1].content


def _prompt(row: RawRow, lead: Conversation, column: str) -> Conversation | None:
    """Return the conversation answered; None where ``prompt`` and the turns before it do not fit.

    Publishers repeat the prompt among the turns before the answer, or part of it, or split the
    conversation between the two. White space at the ends of a turn is no difference.
    """
    given = row.value.get("prompt")
    if given is None:
        if not lead:
            raise UnusableRow(
                "missing_column",
                f"missing column {row.called('prompt')}; {column} holds the answer alone;"
                f" found {row.found()}",
            )
        return lead
    prompt = parse_conversation(row, "prompt")
    if not prompt or not lead:
        return lead or prompt
    asked, repeated = _stripped(prompt), _stripped(lead)
    if any(repeated[i : i + len(asked)] == asked for i in range(len(lead))):
        return lead
    for shared in range(min(len(prompt), len(lead)), 0, -1):
        if asked[-shared:] == repeated[:shared]:
            return (*prompt, *lead[shared:])
    follows = lead[0].role not in (prompt[-1].role, "system")
    return (*prompt, *lead) if follows else None


def _stripped(turns: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]


def decided_comparison(
    prompt: Conversation,
    chosen: str,
    rejected: str,
    *,
    annotator: str,
    place: tuple[str, int],
    strength: float | None = None,
) -> Comparison:
    """Return a comparison with one vote for ``chosen``.

    The publisher's order says who won. So that the side cannot say it as well, the responses lie
    in the order of their ids; the comparison's id is the same whichever won.

    Args:
        prompt: the conversation answered.
        chosen: the published winner; with ``strength`` 0 it is a tie.
        rejected: the other response.
        annotator: name of the one implied vote.
        place: source name and line.
        strength: how much better, where the source says it.
    """
    key = conversation_key(prompt).hex()
    ids = {text: content_id("pair", key, text) for text in (chosen, rejected)}
    response_a, response_b = sorted((chosen, rejected), key=lambda text: ids[text])
    choice: Choice = "a" if response_a == chosen else "b"
    if strength == 0:
        choice = "tie"
    return Comparison(
        comparison_id=content_id("pair", key, response_a, response_b),
        prompt=prompt,
        response_a=response_a,
        response_b=response_b,
        votes=(Vote(annotator=annotator, choice=choice, strength=strength),),
        source=place[0],
        line=place[1],
    )
