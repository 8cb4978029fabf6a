"""Ranked lists: K responses to one prompt become all K(K-1)/2 comparisons, kept as one group.

    {"prompt": ..., "responses": ["best", "second", ...]}
    {"prompt": ..., "responses": [...], "ranks": [2, 1, 2], "annotator": "ann"}
    {"prompt": ..., "responses": [...], "rankings": [{"annotator": "ann", "ranks": [...]}, ...]}

Rank 1 is best; equal ranks are a tie; the distance of ranks is the strength. Rows of several
annotators on the same responses are votes on the same comparisons. A null is the same as a column
that is not there.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

from rlhf_core.dataprep.files import shorten
from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.dataprep.rows import UNNAMED, RawRow, SetAside, annotator_name
from rlhf_core.dataprep.sources.messages import parse_conversation
from rlhf_core.dataprep.sources.words import finite_number
from rlhf_core.errors import DataError
from rlhf_core.schema import Choice, Comparison, Vote

ANNOTATOR = "published"

Ranking = tuple[str, list[float]]
"""Annotator, and the rank of each response."""


def parse_comparisons(rows: Iterable[RawRow]) -> Iterator[Comparison | SetAside]:
    """Yield the comparisons of each list one after the other, all with one ``group``."""
    for row in rows:
        responses = _responses(row)
        if len(responses) < 2:
            yield SetAside.of(row, "too_few_responses", detail=f"{len(responses)} responses")
            continue
        prompt = parse_conversation(row, "prompt")
        rankings = _rankings(row, len(responses))
        group = content_id("list", conversation_key(prompt).hex(), *responses)
        # The publisher's order says who won. So that the side cannot say it too, ids decide it.
        ids = [content_id("side", group, text) for text in responses]
        for pair in combinations(range(len(responses)), 2):
            first, second = sorted(pair, key=lambda place: ids[place])
            yield Comparison(
                comparison_id=f"{group}-{pair[0]}-{pair[1]}",
                prompt=prompt,
                response_a=responses[first],
                response_b=responses[second],
                votes=tuple(_vote(ranking, first, second) for ranking in rankings),
                source=row.source,
                line=row.line,
                group=group,
            )


def _responses(row: RawRow) -> list[str]:
    row.require("responses")
    value = row.value["responses"]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{row.where}: responses: expected a list of texts, found {shorten(value)}")
    return value


def _rankings(row: RawRow, length: int) -> list[Ranking]:
    if (several := row.value.get("rankings")) is not None:
        if not isinstance(several, list):
            raise DataError(f"{row.where}: rankings: expected a list, found {shorten(several)}")
        return [_ranking(row, entry, length, UNNAMED) for entry in several]
    if row.value.get("ranks") is not None:
        return [_ranking(row, row.value, length, ANNOTATOR)]
    return [(ANNOTATOR, [float(place) for place in range(1, length + 1)])]


def _ranking(row: RawRow, entry: Any, length: int, nobody: str) -> Ranking:
    """Return one ranking; ``nobody`` gave it where the source names no one."""
    ranks = entry.get("ranks") if isinstance(entry, dict) else None
    if isinstance(ranks, list) and len(ranks) == length:
        numbers = [finite_number(rank) for rank in ranks if isinstance(rank, int | float)]
        places = [number for number in numbers if number is not None]
        if len(places) == length:
            name = annotator_name(entry.get("annotator"))
            return nobody if name == UNNAMED else name, places
    raise DataError(
        f"{row.where}: ranks: expected {length} numbers, one a response, found {shorten(ranks)}"
    )


def _vote(ranking: Ranking, first: int, second: int) -> Vote:
    annotator, ranks = ranking
    difference = ranks[second] - ranks[first]
    choice: Choice = "tie" if difference == 0 else "a" if difference > 0 else "b"
    return Vote(annotator=annotator, choice=choice, strength=finite_number(abs(difference)))
