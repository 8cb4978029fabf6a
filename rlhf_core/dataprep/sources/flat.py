"""Two responses and who prefers which: one vote a row, or the votes of several in its columns.

Columns: prompt, response_a, response_b; optional comparison_id, annotator, strength, seconds,
source. Who won stands in the first of these that a row has:

    (the columns that the setting ``annotators`` names)   each a person's choice
    choice                                                a word, what ``choices`` maps, the name
                                                          in ``model_a`` or ``model_b``, or the
                                                          winning response itself
    winner_a, winner_b, winner_tie                        one of them is 1
    votes_a, votes_b, votes_tie                           how many voted so
    preference                                            -3 (a) to 3 (b), 0 a tie
    score_a, score_b                                      the higher one won
    rank_a, rank_b                                        the lower one won

Rows that follow one another with the same comparison_id are votes on one comparison; where they do
not, as in a file sorted by annotator, preparation pools them. Sheets are numbered from 1 each, so
an id is one of its file: the comparison's id begins with the file's name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from rlhf_core.config.data import word_of
from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.dataprep.sources.choices import (
    CHOICES,
    Meaning,
    choice_of,
    finite_number,
    is_blank,
    or_without,
    parse_choice,
    parse_number,
    parse_score,
    parse_seconds,
    parse_signed,
    parse_strength,
)
from rlhf_core.dataprep.sources.columns import tags_of
from rlhf_core.dataprep.sources.responses import parse_responses
from rlhf_core.dataprep.sources.rows import (
    UNNAMED,
    FilteredRow,
    RawRow,
    UnusableRow,
    annotator_name,
    attempt,
)
from rlhf_core.schema import Choice, Comparison, Conversation, Vote
from rlhf_core.storage.records import shorten

_SIDES: tuple[Choice, ...] = ("a", "b", "tie")
_MAX_VOTES = 100_000
"""Of one row that counts them; more is no count."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The source's words and numbers, and the columns that are people."""

    choices: Mapping[str, Meaning]
    strengths: Mapping[str, float]
    annotators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Ballot:
    """What one row says."""

    row: RawRow
    source: str
    texts: tuple[Conversation, str, str]
    votes: tuple[Vote, ...]


def parse_comparisons(
    rows: Iterable[RawRow | FilteredRow], labels: Labels
) -> Iterator[tuple[int, Comparison | FilteredRow]]:
    """Yield ``(number of rows, comparison)``; the line is the first row's.

    A row whose choice is blank is no vote: somebody has not answered yet.
    """
    for _, group in groupby(rows, key=_identity):
        ballots: list[_Ballot] = []
        for row in group:
            item: RawRow | FilteredRow | _Ballot = row
            if isinstance(row, RawRow):
                item = attempt(row, partial(_ballot, row, labels, ballots))
            if isinstance(item, _Ballot):
                ballots.append(item)
            elif isinstance(item, FilteredRow):
                yield 1, item
        if ballots:
            yield len(ballots), _comparison(ballots)


def _ballot(row: RawRow, labels: Labels, earlier: list[_Ballot]) -> _Ballot:
    source = str(row.value.get("source") or row.source)
    texts = parse_responses(row, "response_a", "response_b")
    ballot = _Ballot(row, source, texts, _votes(row, labels))
    if earlier and ballot.texts != earlier[0].texts:
        first = earlier[0].row
        raise UnusableRow(
            "conflicting_id",
            f"comparison_id {row.value['comparison_id']!r} stood for other texts on {first.unit}"
            f" {first.line}; an id must stand for one comparison",
        )
    return ballot


def _comparison(ballots: list[_Ballot]) -> Comparison:
    first = ballots[0].row
    prompt, response_a, response_b = ballots[0].texts
    own_id = _own_id(first)
    content = content_id("row", conversation_key(prompt).hex(), response_a, response_b)
    return Comparison(
        comparison_id=f"{first.source}-{own_id}" if own_id else content,
        prompt=prompt,
        response_a=response_a,
        response_b=response_b,
        votes=tuple(vote for ballot in ballots for vote in ballot.votes),
        source=ballots[0].source,
        line=first.line,
        tags=tags_of(first),
    )


def _identity(row: RawRow | FilteredRow) -> tuple[str, str]:
    """Rows without an id are comparisons of their own."""
    own = "" if isinstance(row, FilteredRow) else _own_id(row)
    return row.source, own or f"\x00{row.line}"


def _own_id(row: RawRow) -> str:
    """The row's id as text, 0 included; empty where it has none."""
    value = row.value.get("comparison_id")
    return "" if value is None else str(value)


def _votes(row: RawRow, labels: Labels) -> tuple[Vote, ...]:
    if labels.annotators:
        return _by_person(row, labels)
    if "choice" in row.value:
        choice = _named(row, labels) or parse_choice(row, "choice", labels.choices)
        return _one_vote(row, choice, _strength(row, labels))
    if "winner_a" in row.value:
        return _one_vote(row, _one_hot(row), _strength(row, labels))
    if "votes_a" in row.value:
        return _counted(row)
    if "preference" in row.value:
        return _signed(row, labels)
    if "score_a" in row.value:
        return _by_number(row, "score")
    if "rank_a" in row.value:
        return _by_number(row, "rank")
    raise UnusableRow(
        "missing_column",
        f"missing column {row.called('choice')}, or winner_a, votes_a, preference or score_a and"
        f" the like; found {row.found()}",
    )


def _named(row: RawRow, labels: Labels) -> Choice | None:
    """Return the side whose model's name, or whose response, the choice is; None for others."""
    word = word_of(row.value["choice"]).casefold()
    if not word or word in map(str.casefold, labels.choices):
        return None
    sides: tuple[Choice, Choice] = ("a", "b")
    names = [word_of(dict.get(row.value, f"model_{side}") or "").casefold() for side in sides]
    won = [side for side, name in zip(sides, names, strict=True) if name == word]
    if not won and word not in CHOICES:
        texts = [dict.get(row.value, f"response_{side}") for side in sides]
        named = str(row.value["choice"]).strip()
        won = [
            side
            for side, text in zip(sides, texts, strict=True)
            if isinstance(text, str) and text.strip() == named
        ]
        return won[0] if len(won) == 1 else None
    if len(won) > 1:
        raise UnusableRow(
            "unusable_value",
            f"{row.called('choice')}: both sides are called {shorten(word)}; which of them won"
            " cannot be determined",
        )
    if won:
        row.value["model_a"], row.value["model_b"]
    return won[0] if won else None


def _one_vote(row: RawRow, choice: Choice | None, strength: float | None) -> tuple[Vote, ...]:
    annotator = annotator_name(row.value.get("annotator"))
    seconds = parse_seconds(row, "seconds")
    if choice is None:
        return ()
    return (Vote(annotator=annotator, choice=choice, strength=strength, seconds=seconds),)


def _strength(row: RawRow, labels: Labels) -> float | None:
    """Return how much better; where one column says side and strength, its sign is the side's.

    A vote does without what cannot be read, unless the settings say where or how it is written.
    """
    same = row.names.get("strength", "strength") == row.names.get("choice", "choice")
    if same and not labels.strengths:
        return parse_signed(row, "strength")
    read = partial(parse_strength, row, "strength", labels.strengths)
    if labels.strengths or "strength" in row.names:
        return read()
    return or_without(row, "strength", read)


def _by_person(row: RawRow, labels: Labels) -> tuple[Vote, ...]:
    row.require(*labels.annotators)
    answers = ((name, parse_choice(row, name, labels.choices)) for name in labels.annotators)
    return tuple(
        Vote(annotator=name, choice=choice) for name, choice in answers if choice is not None
    )


def _one_hot(row: RawRow) -> Choice | None:
    """Return the side whose column is 1; None where none is."""
    row.require("winner_b")
    won = [side for side in _SIDES if _is_one(row, f"winner_{side}")]
    if len(won) > 1:
        raise UnusableRow("unusable_value", f"several winners: {', '.join(won)}; expected one")
    return won[0] if won else None


def _is_one(row: RawRow, column: str) -> bool:
    value = row.value.get(column)
    if is_blank(value):
        return False
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    number = finite_number(value)
    if number not in (0, 1):
        raise UnusableRow("unusable_value", f"{column}: expected 0 or 1, found {number}")
    return number == 1


def _counted(row: RawRow) -> tuple[Vote, ...]:
    """Return as many votes without a name as the columns count."""
    row.require("votes_b")
    votes: list[Vote] = []
    for side in _SIDES:
        count = parse_number(row, f"votes_{side}") or 0.0
        if not count.is_integer() or count > _MAX_VOTES:
            raise UnusableRow(
                "unusable_value", f"votes_{side}: expected a number of votes, found {count:g}"
            )
        votes += [Vote(annotator=UNNAMED, choice=side)] * int(count)
    return tuple(votes)


def _signed(row: RawRow, labels: Labels) -> tuple[Vote, ...]:
    """Return the vote of a number whose sign is the side: below 0 a, unless ``choices`` says b."""
    number = parse_score(row, "preference")
    if number is None:
        return ()
    sign = (number > 0) - (number < 0)
    usual: dict[str, Meaning] = {"-1": "a", "0": "tie", "1": "b"}
    names_sides = any(meaning != "none" for meaning in labels.choices.values())
    choice = choice_of(sign, labels.choices if names_sides else {**usual, **labels.choices})
    return _one_vote(row, choice, abs(number))


def _by_number(row: RawRow, word: str) -> tuple[Vote, ...]:
    """Return the vote for the higher score or the lower rank."""
    row.require(f"{word}_b")
    one, two = parse_score(row, f"{word}_a"), parse_score(row, f"{word}_b")
    if one is None or two is None:
        return ()
    is_first = one > two if word == "score" else one < two
    choice: Choice = "tie" if one == two else "a" if is_first else "b"
    return _one_vote(row, choice, finite_number(abs(one - two)))
