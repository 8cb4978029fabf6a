"""Settings for a file whose rows have several votes each, in one list."""

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.dataprep.sources import column_names
from rlhf_core.dataprep.sources.choices import CHOICES
from rlhf_core.dataprep.sources.labels import label_choices
from rlhf_core.dataprep.sources.observed import Guess, Table, as_list, built_in, renames

_VOTE = {"annotator", "choice"}
_ANY_SIDES = ("response_a", "response_b")


def guess_votes(table: Table, sides: tuple[str, str] | None) -> Iterator[Guess]:
    """Yield the guess that a column is a list of votes.

    They are votes as records have them, choices alone, or what Argilla exports: the answers to a
    question, and beside them a list of who gave each and one of what became of it.

    Args:
        table: the columns.
        sides: columns of the two responses, where they are known.
    """
    for name, values in table.values.items():
        lists = [as_list(value) for value in values]
        votes = [vote for entries in lists for vote in entries or () if vote is not None]
        if not votes:
            continue
        if table.is_exported(name):
            beside = {"vote_annotators": f"{name}.users", "vote_statuses": f"{name}.status"}
            beside = {ours: theirs for ours, theirs in beside.items() if theirs in table.values}
            yield from _exported(table, name, votes, sides, beside)
        elif table.are_answers(name):
            yield from _answered(table, name, votes, sides)
        elif sides is not None and _are_votes(votes):
            yield _listed(table, name, sides)


def _are_votes(votes: list[Any]) -> bool:
    are_named = all(isinstance(vote, dict) and set(vote) >= _VOTE for vote in votes)
    return are_named or all(_is_choice(vote) for vote in votes)


def _is_choice(vote: Any) -> bool:
    return isinstance(vote, str) and vote.strip().lower() in CHOICES


def _listed(table: Table, name: str, sides: tuple[str, str], **more: str) -> Guess:
    columns = {
        "prompt": table.find(column_names.PROMPTS),
        "response_a": sides[0],
        "response_b": sides[1],
        "votes": name,
        **more,
        "comparison_id": table.find(column_names.OTHERS["comparison_id"]),
        "system": table.find(column_names.OTHERS["system"]),
    }
    return Guess("lists of votes", {"format": "canonical", "columns": renames(columns)})


def _answered(
    table: Table, name: str, answers: list[Any], sides: tuple[str, str] | None
) -> Iterator[Guess]:
    """Yield what the answers to a question of Argilla 1 are: choices, or ratings of one side."""
    other = table.other_side(name)
    if sides is not None and other is not None and table.are_answers(other):
        yield _rated(table, (name, other), sides)
    elif not any(name == table.other_side(first) for first in table.values):
        values = [one["value"] for one in answers if one["value"] is not None]
        parts = {"vote_annotators": "user_id", "vote_statuses": "status"}
        beside = {ours: f"{name}.*.{part}" for ours, part in parts.items() if part in answers[0]}
        yield from _exported(table, f"{name}.*.value", values, sides, beside)


def _rated(table: Table, questions: tuple[str, str], sides: tuple[str, str]) -> Guess:
    """Return the guess that one person rated both answers; of several only people can say who."""
    names = zip(("a", "b"), questions, strict=True)
    scores = {f"score_{side}": f"{question}.0.value" for side, question in names}
    settings = {
        "format": "flat",
        "columns": renames(
            {
                "prompt": table.find(column_names.PROMPTS),
                "response_a": sides[0],
                "response_b": sides[1],
                **scores,
                "annotator": f"{questions[0]}.0.user_id",
            }
        ),
    }
    lists = [as_list(value) or [] for name in questions for value in table.values[name]]
    if all(len(one) < 2 and {part["status"] for part in one} <= {"submitted"} for one in lists):
        return Guess("scores that decide", settings)
    given = ", ".join(f"{ours}: {theirs}" for ours, theirs in scores.items())
    return Guess(
        "",
        {},
        question=f"columns {questions[0]!r} and {questions[1]!r} hold ratings of several people, or"
        " some that nobody submitted, and which of them count cannot be determined; say it in"
        f" columns, with format flat: {{{given}, ...}} takes the first of each",
    )


def _exported(
    table: Table,
    name: str,
    votes: list[Any],
    sides: tuple[str, str] | None,
    beside: Mapping[str, str],
) -> Iterator[Guess]:
    """Yield the guess that people answered by a choice; of other questions than that none."""
    if any(isinstance(vote, list | dict) for vote in votes):
        yield Guess(
            "",
            {},
            question=f"column {name!r} holds a ranking by every annotator, and of which columns"
            " cannot be determined; write a row as a list of responses with their ranks",
        )
        return
    choices, note, question = label_choices(votes, name, sides or _ANY_SIDES)
    if sides is None:
        if not (note or question):  # Ratings and texts are answers to one response as well.
            named = ", ".join(f"{ours}: {theirs}" for ours, theirs in beside.items())
            yield Guess(
                "",
                {},
                question=f"column {name!r} holds votes, and which columns hold the two answers"
                " cannot be determined; say it in columns, with format canonical:"
                f" {{response_a: ..., response_b: ..., votes: {name}, {named}}}",
            )
        return
    guess = _listed(table, name, sides, **beside)
    if choices:
        guess.settings["choices"] = {**built_in(votes), **choices}
    if "vote_statuses" in beside:
        guess.notes.append(f"votes count that {beside['vote_statuses']} calls submitted")
    guess.notes += [note] if note else []
    guess.question = question
    yield guess
