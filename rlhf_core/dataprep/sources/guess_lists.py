"""Settings for a file whose rows have several answers each, in one list."""

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_core.config.data import word_of
from rlhf_core.dataprep.sources import column_names
from rlhf_core.dataprep.sources.choices import finite_number
from rlhf_core.dataprep.sources.labels import ask
from rlhf_core.dataprep.sources.observed import Guess, Table, as_list, renames
from rlhf_core.dataprep.sources.ranked import inverse, order_of


def guess_lists(table: Table) -> Iterator[Guess]:
    """Yield the ways in which a column may hold several answers, with ranks or scores."""
    prompt = table.find(column_names.PROMPTS)
    for name in column_names.LISTS:
        column = table.find([name])
        if column is None or table.is_exported(column):
            continue
        lists = [as_list(value) for value in table.values[column]]
        entries = [entry for value in lists for entry in value or ()]
        if not entries:
            continue
        columns = {"prompt": prompt, "responses": column}
        if all(isinstance(entry, dict) for entry in entries):
            fields = list(entries[0])
            text = next((f for f in column_names.TEXTS if f in fields), None)
            if text is None:
                continue
            columns["responses"] = f"{column}.*.{text}"
            inside = [(f, f"{column}.*.{f}") for f in fields if f != text]
        else:
            inside = []
        beside = [(path, path) for path in table.values if path != column]
        lengths = [len(value) for value in lists if value]
        yield _ranked(table, columns, [*inside, *beside], lengths)


def _ranked(
    table: Table,
    columns: dict[str, str | None],
    found: Sequence[tuple[str, str]],
    lengths: Sequence[int],
) -> Guess:
    """Return the guess with the ranks, scores or the best one's place that stand with answers."""
    for ours, names in (("ranks", column_names.RANKS), ("scores", column_names.SCORES)):
        by_name = {
            name.lower().removesuffix("s"): path
            for name, path in reversed(found)
            if name != "rankings" and (".*." in path or all(map(as_list, table.values[path])))
        }
        for name in names:
            if name in by_name or name.removesuffix("s") in by_name:
                theirs = by_name.get(name) or by_name[name.removesuffix("s")]
                columns[ours] = theirs
                settings = {"format": "ranked", "columns": renames(columns)}
                guess = Guess(f"list with {ours}", settings)
                return _ordered(guess, theirs, table) if ours == "ranks" else guess
    guess = Guess("ranked list", {"format": "ranked", "columns": renames(columns)})
    if unclear := [path for _, path in found if ".*." in path and _are_numbers(table, path)]:
        guess.question = (
            f"the answers have {', '.join(unclear)}, and whether the best has most of it cannot"
            " be determined; say it in columns: {scores: ...}, or {ranks: ...} where 1 is best"
        )
        return guess
    if (best := table.find(column_names.BEST)) is not None and best != columns["prompt"]:
        return _best(guess, best, table.values[best], lengths)
    if "rankings" not in table.values:
        guess.notes.append("the answers are taken to stand best first")
    return guess


def _ordered(guess: Guess, column: str, table: Table) -> Guess:
    """Return the guess of ranks, or the question whether they are places of answers, best first.

    Where every list reads the same both ways, as ``[1, 0]`` does, nothing is asked.
    """
    orders = [order_of(as_list(value)) for value in table.values.get(column, ())]
    known = [order for order in orders if order is not None]
    if (
        column == "ranks"
        or len(known) < len(orders)
        or all(order == inverse(order) for order in known)
    ):
        return guess
    begin = min(finite_number(place) or 0 for place in as_list(table.values[column][0]) or ())
    if column.lower() == "ranking" and begin == 0:
        guess.question = (
            f"column {column!r} holds the numbers from 0, and whether each is the rank of the"
            " answer at its place or the place of an answer, the best first, cannot be determined;"
            f" say it in columns: {{ranks: {column}}}, or {{best_first: {column}}}"
        )
        return guess
    guess.notes.append(
        f"{column} is taken for the rank of each answer, {begin:g} the best; were it the order of"
        f" the answers, it would be columns: {{best_first: {column}}}"
    )
    return guess


def _are_numbers(table: Table, path: str) -> bool:
    """Tell whether a field of the entries of a list is a number that differs among them."""
    column, _, name = path.partition(".*.")
    lists = [as_list(value) or [] for value in table.values[column]]
    entries = [[entry.get(name) for entry in entries] for entries in lists]
    known = [value for values in entries for value in values if value is not None]
    are_ids = name.lower() == "id" or name.lower().endswith(("_id", "index"))
    return (
        not are_ids
        and len(known) > 0
        and all(not isinstance(v, str) and finite_number(v) is not None for v in known)
        and any(len(set(values)) > 1 for values in entries)
    )


def _best(guess: Guess, column: str, values: Sequence[Any], lengths: Sequence[int]) -> Guess:
    """Return the guess that a column says which answer of a list is best, by its place."""
    places = [finite_number(value) for value in values]
    known = [place for place in places if place is not None and place.is_integer()]
    largest = max(lengths, default=0)
    if len(known) < len(places) or not known or min(known) < 0 or max(known) > largest:
        guess.question = ask(column, sorted({word_of(value) for value in values}))
        return guess
    if min(known) > 0 and max(known) < largest:
        guess.question = (
            f"column {column!r} holds places of the best answer, and whether they count from 0 or"
            f" from 1 cannot be determined; say it in columns: {{best_index: {column}}}, or"
            f" {{best_number: {column}}} where the first answer is 1"
        )
        return guess
    ours = "best_index" if min(known) == 0 else "best_number"
    guess.shape = "list with the best answer's place"
    guess.settings["columns"] = {**guess.settings["columns"], ours: column}
    guess.notes.append(f"{column} is taken to count from {0 if min(known) == 0 else 1}")
    return guess
