"""Settings for a file whose rows have several votes each, in one list."""

from collections.abc import Iterator
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
            yield from _exported(table, name, votes, sides)
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


def _exported(
    table: Table, name: str, votes: list[Any], sides: tuple[str, str] | None
) -> Iterator[Guess]:
    """Yield the guess that people answered by a choice; of other questions than that none."""
    beside = {"vote_annotators": f"{name}.users", "vote_statuses": f"{name}.status"}
    beside = {ours: theirs for ours, theirs in beside.items() if theirs in table.values}
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
