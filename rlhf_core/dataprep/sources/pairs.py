"""Chosen and rejected, as TRL, UltraFeedback, LLaMA-Factory and Argilla write them.

Each is plain text, a message or a list of messages. Lists may hold the whole conversation (then
``prompt`` is optional) or the answer alone. Where either holds several answers, every chosen one
is better than every rejected one.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.dataprep.sources.choices import finite_number, parse_score, parse_strength
from rlhf_core.dataprep.sources.columns import tags_of
from rlhf_core.dataprep.sources.messages import readable, texts_of
from rlhf_core.dataprep.sources.responses import decided_comparison, parse_responses
from rlhf_core.dataprep.sources.rows import FilteredRow, RawRow, UnusableRow
from rlhf_core.schema import Comparison

ANNOTATOR = "published"
"""The one implied vote of every row is this annotator's."""

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)
"""Where publishers keep the scores behind the choice; equal scores are a tie."""
_MARGIN = "margin"
"""The difference itself, as TRL's reward trainer reads it."""


def comparisons_of(row: RawRow) -> Iterator[Comparison | FilteredRow]:
    """Yield one comparison; the difference of scores, where given, is its strength.

    Of several answers all pairs of a chosen and a rejected one come out, with one ``group``.
    """
    row.require("chosen", "rejected")
    several = [_several(row, column) for column in ("chosen", "rejected")]
    if several == [None, None]:
        yield _comparison(row, _strength(row))
        return
    sides = [
        [row.value[column]] if answers is None else answers
        for column, answers in zip(("chosen", "rejected"), several, strict=True)
    ]
    for answers, column in zip(sides, ("chosen", "rejected"), strict=True):
        if not answers:
            raise UnusableRow("too_few_responses", f"{column}: no answer")
    group = ""
    for chosen, rejected in product(*sides):
        value = row.value.copy_with(chosen=chosen, rejected=rejected)
        try:
            item = _comparison(replace(row, value=value), None)
        except UnusableRow as error:
            yield FilteredRow.of(row, error.reason, error.detail)
            continue
        group = group or content_id("list", conversation_key(item.prompt).hex(), repr(sides))
        yield item.model_copy(update={"group": group})


def _several(row: RawRow, column: str) -> list[Any] | None:
    """Return a column's answers where it is a list of them; None where it holds one."""
    value = readable(row, row.value[column])
    if not isinstance(value, list):
        return None
    texts = texts_of(row, column)
    if texts and len(texts) == len(texts_of(row, "prompt")):
        return None  # One conversation: its prompts and its answers.
    if texts or not value or all(isinstance(entry, list) for entry in value):
        return value
    return None


def _comparison(row: RawRow, strength: float | None) -> Comparison:
    prompt, chosen, rejected = parse_responses(row, "chosen", "rejected")
    if chosen.strip() == rejected.strip():
        raise UnusableRow("identical_responses", "")
    return decided_comparison(
        prompt,
        chosen,
        rejected,
        annotator=ANNOTATOR,
        place=(row.source, row.line),
        strength=strength,
    ).model_copy(update={"tags": tags_of(row)})


def _strength(row: RawRow) -> float | None:
    for better, worse in _SCORES:
        if better not in row.value or worse not in row.value:
            continue
        high, low = parse_score(row, better), parse_score(row, worse)
        if high is None or low is None:
            continue
        if high < low:
            raise UnusableRow(
                "reversed_scores",
                f"{better} {high:g} is below {worse} {low:g};"
                " the chosen response must not score lower",
            )
        return finite_number(high - low)
    return parse_strength(row, _MARGIN, {})
