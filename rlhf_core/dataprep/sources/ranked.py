"""Ranked lists: K responses to one prompt become all K(K-1)/2 comparisons, kept as one group.

    {"prompt": ..., "responses": ["best", "second", ...]}
    {"prompt": ..., "responses": [...], "ranks": [2, 1, 2], "annotator": "ann"}
    {"prompt": ..., "responses": [...], "scores": [4.5, 9, 4.5]}
    {"prompt": ..., "responses": [...], "best_index": 1}
    {"prompt": ..., "responses": [...], "rankings": [{"annotator": "ann", "ranks": [...]}, ...]}

Rank 1 is best, or the highest score; equal ones are a tie; their distance is the strength. Rows of
several annotators on the same responses are votes on the same comparisons. ``best_index`` (from 0)
or ``best_number`` (from 1) names one answer that beats each of the others, of which nothing else is
said. A null is the same as a column that is not there. A response is text or a message.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from rlhf_core.dataprep.files import shorten
from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.dataprep.rows import UNNAMED, RawRow, UnusableRow, annotator_name
from rlhf_core.dataprep.sources.columns import structured
from rlhf_core.dataprep.sources.messages import answer_of, parse_prompt
from rlhf_core.dataprep.sources.words import finite_number, is_blank
from rlhf_core.schema import Choice, Comparison, Conversation, Vote

ANNOTATOR = "published"

Ranking = tuple[str, list[float]]
"""Annotator, and the rank of each response."""


def comparisons_of(row: RawRow) -> Iterator[Comparison]:
    """Yield the comparisons of a list one after the other, all with one ``group``."""
    responses = _responses(row)
    if len(responses) < 2:
        raise UnusableRow("too_few_responses", f"{len(responses)} responses")
    best = _best(row, len(responses))
    rankings = _rankings(row, len(responses)) if best is None else [_first(row, best, responses)]
    pairs = all_pairs(parse_prompt(row), responses, rankings, (row.source, row.line))
    for pair, numbers in zip(pairs, combinations(range(len(responses)), 2), strict=True):
        if best is None or best in numbers:
            yield pair


def all_pairs(
    prompt: Conversation,
    responses: Sequence[str],
    rankings: Sequence[Ranking],
    place: tuple[str, int],
) -> Iterator[Comparison]:
    """Yield every two of some responses as a comparison with the votes that rankings imply."""
    group = content_id("list", conversation_key(prompt).hex(), *responses)
    # The publisher's order says who won. So that the side cannot say it too, ids decide it.
    ids = [content_id("side", group, text) for text in responses]
    for pair in combinations(range(len(responses)), 2):
        first, second = sorted(pair, key=lambda number: ids[number])
        yield Comparison(
            comparison_id=f"{group}-{pair[0]}-{pair[1]}",
            prompt=prompt,
            response_a=responses[first],
            response_b=responses[second],
            votes=tuple(_vote(ranking, first, second) for ranking in rankings),
            source=place[0],
            line=place[1],
            group=group,
        )


def _responses(row: RawRow) -> list[str]:
    row.require("responses")
    value = _list(row.value["responses"])
    if not isinstance(value, list):
        raise UnusableRow(
            "unusable_value", f"responses: expected a list of texts, found {shorten(value)}"
        )
    if not all(isinstance(entry, str | dict) for entry in value):
        raise UnusableRow(
            "unusable_value", f"responses: expected a list of texts, found {shorten(value)}"
        )
    return [
        entry if isinstance(entry, str) else answer_of(entry, f"responses.{number}")[1]
        for number, entry in enumerate(value)
    ]


def _list(value: Any) -> Any:
    """Return a list that a cell of a table writes as text, too."""
    return structured(value) if isinstance(value, str) else value


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


def _first(row: RawRow, best: int, responses: Sequence[str]) -> Ranking:
    name = annotator_name(row.value.get("annotator"))
    ranks = [1.0 if number == best else 2.0 for number in range(len(responses))]
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
    if row.value.get("scores") is not None:
        annotator, scores = _ranking(row.value, "scores", length, ANNOTATOR)
        return [(annotator, [-score for score in scores])]
    return [(ANNOTATOR, [float(number) for number in range(1, length + 1)])]


def _ranking(entry: Any, column: str, length: int, nobody: str) -> Ranking:
    """Return one ranking; ``nobody`` gave it where the source names no one."""
    ranks = _list(entry.get(column)) if isinstance(entry, dict) else None
    if isinstance(ranks, list) and len(ranks) == length:
        places = [number for rank in ranks if (number := finite_number(rank)) is not None]
        if len(places) == length:
            name = annotator_name(entry.get("annotator"))
            return nobody if name == UNNAMED else name, places
    raise UnusableRow(
        "unusable_value",
        f"{column}: expected {length} numbers, one a response, found {shorten(ranks)}",
    )


def _vote(ranking: Ranking, first: int, second: int) -> Vote:
    annotator, ranks = ranking
    difference = ranks[second] - ranks[first]
    choice: Choice = "tie" if difference == 0 else "a" if difference > 0 else "b"
    return Vote(annotator=annotator, choice=choice, strength=finite_number(abs(difference)))
