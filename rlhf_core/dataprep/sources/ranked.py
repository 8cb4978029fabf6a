"""Ranked lists: K responses to one prompt become all K(K-1)/2 comparisons, kept as one group.

    {"prompt": ..., "responses": ["best", "second", ...]}
    {"prompt": ..., "responses": [...], "ranks": [2, 1, 2], "annotator": "ann"}
    {"prompt": ..., "responses": [...], "scores": [4.5, 9, 4.5]}
    {"prompt": ..., "responses": [...], "best_index": 1}
    {"prompt": ..., "responses": [...], "best_first": [2, 0, 1]}
    {"prompt": ..., "responses": [...], "rankings": [{"annotator": "ann", "ranks": [...]}, ...]}

Rank 1 is best, or the highest score; equal ones are a tie; their distance is the strength. Rows of
several annotators on the same responses are votes on the same comparisons. ``best_index`` (from 0)
or ``best_number`` (from 1) names one answer that beats each of the others, of which nothing else is
said; ``best_first`` names all by their number, from 0 or 1. A null is the same as a column that is
not there, and an answer whose place or score is null takes part in no comparison. A response is
text or a message.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.dataprep.sources.choices import finite_number, is_blank
from rlhf_core.dataprep.sources.columns import structured
from rlhf_core.dataprep.sources.messages import answer_of, parse_prompt
from rlhf_core.dataprep.sources.rows import UNNAMED, RawRow, UnusableRow, annotator_name
from rlhf_core.schema import Choice, Comparison, Conversation, Vote
from rlhf_core.storage.records import shorten

ANNOTATOR = "published"

Ranking = tuple[str, list[float]]
"""Annotator, and the rank of each response."""


def comparisons_of(row: RawRow) -> Iterator[Comparison]:
    """Yield the comparisons of a list one after the other, all with one ``group``."""
    every = _responses(row)
    best = _best(row, len(every))
    given = _rankings(row, len(every)) if best is None else [_first(row, best, every)]
    known = [number for number, text in enumerate(every) if text is not None]
    responses = [text for text in every if text is not None]
    rankings = [(name, [ranks[number] for number in known]) for name, ranks in given]
    pairs = list(all_pairs(parse_prompt(row), responses, rankings, (row.source, row.line)))
    if not pairs:
        placed = sum(any(not math.isnan(ranks[n]) for _, ranks in given) for n in known)
        raise UnusableRow("too_few_responses", f"{placed} responses with text and place")
    yield from pairs


def all_pairs(
    prompt: Conversation,
    responses: Sequence[str],
    rankings: Sequence[Ranking],
    place: tuple[str, int],
) -> Iterator[Comparison]:
    """Yield every two of some responses as a comparison with the votes that rankings imply.

    Whoever gave one of the two no place (NaN) did not compare them; neither did who gave both the
    place behind all (infinity). Those that nobody compared are left out.
    """
    group = content_id("list", conversation_key(prompt).hex(), *responses)
    # The publisher's order says who won. So that the side cannot say it too, ids decide it.
    ids = [content_id("side", group, text) for text in responses]
    for pair in combinations(range(len(responses)), 2):
        first, second = sorted(pair, key=lambda number: ids[number])
        votes = tuple(_vote(one, first, second) for one in rankings if _compares(one, *pair))
        if not votes:
            continue
        yield Comparison(
            comparison_id=f"{group}-{pair[0]}-{pair[1]}",
            prompt=prompt,
            response_a=responses[first],
            response_b=responses[second],
            votes=votes,
            source=place[0],
            line=place[1],
            group=group,
        )


def _responses(row: RawRow) -> list[str | None]:
    """Return the answers; None where an entry of the list is a null."""
    row.require("responses")
    value = structured(row.value["responses"])
    if not isinstance(value, list):
        raise UnusableRow(
            "unusable_value", f"responses: expected a list of texts, found {shorten(value)}"
        )
    if not all(isinstance(entry, str | dict | None) for entry in value):
        raise UnusableRow(
            "unusable_value", f"responses: expected a list of texts, found {shorten(value)}"
        )
    return [
        answer_of(entry, f"responses.{number}")[1] if isinstance(entry, dict) else entry
        for number, entry in enumerate(value)
    ]


def _best(row: RawRow, length: int) -> int | None:
    """Return the place, from 0, of the answer that a row says is best; None where it says none."""
    for column, first in (("best_index", 0), ("best_number", 1)):
        value = row.value.get(column)
        if is_blank(value):
            continue
        number = finite_number(value)
        if number is None or not number.is_integer() or not 0 <= number - first < length:
            raise UnusableRow(
                "unusable_value",
                f"{column}: expected a number from {first} to {length - 1 + first}, one of the"
                f" {length} responses, found {shorten(value)}",
            )
        return int(number) - first
    return None


def _first(row: RawRow, best: int, responses: Sequence[str | None]) -> Ranking:
    name = annotator_name(row.value.get("annotator"))
    ranks = [1.0 if number == best else math.inf for number in range(len(responses))]
    return ANNOTATOR if name == UNNAMED else name, ranks


def _rankings(row: RawRow, length: int) -> list[Ranking]:
    if (several := row.value.get("rankings")) is not None:
        if not isinstance(several, list):
            raise UnusableRow(
                "unusable_value", f"rankings: expected a list, found {shorten(several)}"
            )
        return [_ranking(entry, "ranks", length, UNNAMED) for entry in several]
    if row.value.get("ranks") is not None:
        return [_ranking(row.value, "ranks", length, ANNOTATOR)]
    if (order := row.value.get("best_first")) is not None:
        places = order_of(structured(order))
        if places is None or len(places) != length:
            raise UnusableRow(
                "unusable_value",
                f"best_first: expected the numbers of {length} responses, each once, found"
                f" {shorten(order)}",
            )
        name = annotator_name(row.value.get("annotator"))
        ranks = [float(place) for place in inverse(places)]
        return [(ANNOTATOR if name == UNNAMED else name, ranks)]
    if row.value.get("scores") is not None:
        annotator, scores = _ranking(row.value, "scores", length, ANNOTATOR)
        return [(annotator, [-score for score in scores])]
    return [(ANNOTATOR, [float(number) for number in range(1, length + 1)])]


def order_of(values: Any) -> list[int] | None:
    """Return the places, from 0, that a list of numbers from 0 or 1 names, each once."""
    if not isinstance(values, list) or not values:
        return None
    numbers = [finite_number(value) for value in values]
    known = [int(number) for number in numbers if number is not None and number.is_integer()]
    begin = min(known, default=0)
    if begin not in (0, 1) or sorted(known) != list(range(begin, begin + len(values))):
        return None
    return [number - begin for number in known]


def inverse(order: Sequence[int]) -> list[int]:
    """Return at which place of an order each number stands."""
    return sorted(range(len(order)), key=order.__getitem__)


def _ranking(entry: Any, column: str, length: int, nobody: str) -> Ranking:
    """Return one ranking; ``nobody`` gave it where the source names no one."""
    ranks = structured(entry.get(column)) if isinstance(entry, dict) else None
    if isinstance(ranks, list) and len(ranks) == length:
        numbers = [math.nan if is_blank(rank) else finite_number(rank) for rank in ranks]
        places = [number for number in numbers if number is not None]
        if len(places) == length:
            name = annotator_name(entry.get("annotator"))
            return nobody if name == UNNAMED else name, places
    raise UnusableRow(
        "unusable_value",
        f"{column}: expected {length} numbers, one a response, found {shorten(ranks)}",
    )


def _compares(ranking: Ranking, first: int, second: int) -> bool:
    _, ranks = ranking
    return not math.isnan(ranks[first] - ranks[second])


def _vote(ranking: Ranking, first: int, second: int) -> Vote:
    annotator, ranks = ranking
    difference = ranks[second] - ranks[first]
    choice: Choice = "tie" if difference == 0 else "a" if difference > 0 else "b"
    return Vote(annotator=annotator, choice=choice, strength=finite_number(abs(difference)))
