"""Settings for a file whose shape nobody has named, from what its columns are called and hold.

A guess names what it takes for granted; what could mean either side is no guess but a question.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rlhf_core.config.data import WORDS_OF_TRUTH, word_of
from rlhf_core.dataprep.sources import column_names
from rlhf_core.dataprep.sources.choices import CHOICES, finite_number
from rlhf_core.dataprep.sources.guess_lists import guess_lists
from rlhf_core.dataprep.sources.guess_votes import guess_votes
from rlhf_core.dataprep.sources.labels import MAX_WORDS, ask, label_choices, truth_choices
from rlhf_core.dataprep.sources.observed import Guess, Table, built_in, renames
from rlhf_core.schema import Choice
from rlhf_core.storage.records import listed

_WON = ("winner", "wins", "win", "won", "best", "preferred", "is_better", "better")
_VOTES = ("votes", "num_votes", "n_votes", "vote_count", "votes_for", "count", "num")
_MODELS = ("model", "model_name", "system", "name", "policy", "source", "generator")
_SCORED = ("score", "scores", "rating", "reward", "overall_score", "quality", "points")
_SAYS = frozenset(
    ("best", "better", "choice", "chosen", "prefer", "preferred", "preference", "vote", "winner")
)
"""Parts of the name of a column of numbers that says who won."""


def guesses(table: Table) -> Iterator[Guess]:
    """Yield what the columns may be, the surest first."""
    if (pair := table.both(_names_of_pairs())) is not None:
        yield _decided(table, pair)
    sides = _sides(table)
    yield from guess_votes(table, sides)
    if sides is not None:
        yield from _compared(table, sides)
    yield from guess_lists(table)
    yield from _tasks(table)
    if any(name.endswith(".replies") for name in table.values):
        yield Guess("tree of ranked replies", {"format": "tree"})


def _tasks(table: Table) -> Iterator[Guess]:
    """Yield the guess that rows are tasks of Label Studio, by what their texts are called."""
    texts = {
        name.removeprefix("data."): values
        for name, values in table.values.items()
        if name.startswith("data.")
    }
    sides = _sides(Table(texts))
    if "annotations" in table.values and sides is not None:
        prompt = Table(texts).find(column_names.PROMPTS)
        columns = {"prompt": prompt, "response_a": sides[0], "response_b": sides[1]}
        yield Guess("Label Studio", {"format": "label_studio", "columns": renames(columns)})


def has_responses(table: Table) -> bool:
    """Tell whether two columns are called like two responses, whoever won."""
    return table.both(_names_of_pairs()) is not None or _sides(table) is not None


def _names_of_pairs() -> list[tuple[str, str]]:
    forms = ["{}", *(f"{{}}_{word}" for word in column_names.ANSWERS)]
    forms += [f"{word}_{{}}" for word in column_names.ANSWERS]
    return [
        (form.format(one), form.format(two)) for form in forms for one, two in column_names.PAIRS
    ]


def _others(table: Table, *names: str) -> dict[str, str]:
    found = {name: table.find(column_names.OTHERS[name]) for name in names}
    return {name: theirs for name, theirs in found.items() if theirs is not None}


def _decided(table: Table, pair: tuple[str, str]) -> Guess:
    columns = {"prompt": table.find(column_names.PROMPTS), "chosen": pair[0], "rejected": pair[1]}
    columns |= _others(table, "system")
    settings = {"format": "pairs", "columns": renames(columns)}
    return Guess("winner and loser", settings)


def _sides(table: Table) -> tuple[str, str] | None:
    """Return the columns of the two responses: known names, or two that end in a and b, say."""
    if (known := table.both(column_names.SIDES)) is not None:
        return _inside(table, known)
    for name, values in table.values.items():
        other = table.other_side(name)
        if other is not None and _are_texts(values) and not table.are_answers(name):
            return name, other
    return None


def _inside(table: Table, sides: tuple[str, str]) -> tuple[str, str]:
    """Return where the text of two responses is that are objects, but no messages."""
    entries = [value for name in sides for value in table.values[name]]
    if not all(isinstance(entry, dict) and not {"role", "from"} & set(entry) for entry in entries):
        return sides
    text = next((name for name in column_names.TEXTS if entries and name in entries[0]), None)
    return sides if text is None else (f"{sides[0]}.{text}", f"{sides[1]}.{text}")


def _are_texts(values: Sequence[Any]) -> bool:
    texts = [value for value in values if isinstance(value, str | list | dict)]
    numbers = [value for value in texts if finite_number(value) is not None]
    return len(texts) == len(values) > 0 and not numbers


def _compared(table: Table, sides: tuple[str, str]) -> Iterator[Guess]:
    """Yield the ways in which columns may say which of two responses is better."""
    columns: dict[str, str | None] = {
        "prompt": _prompt_to(table, sides),
        "response_a": sides[0],
        "response_b": sides[1],
    }
    columns |= _others(table, "annotator", "comparison_id", "seconds", "system")
    strength = _others(table, "strength")
    taken: set[str] = set()
    for ours, called, name in (
        ("winner", _WON, "one-hot winner"),
        ("votes", _VOTES, "counts of votes"),
    ):
        found = table.sided(called)
        if found and all(_are_counts(table.values[theirs]) for theirs in found.values()):
            settled = {f"{ours}_{side}": theirs for side, theirs in found.items()}
            yield _flat(name, {**columns, **settled})
            taken |= set(found.values())
    yield from _by_choice(table, sides, {**columns, **strength}, taken)
    yield from _by_name(table, sides, {**columns, **strength})
    for ours, words in (("score", _SCORED), ("rank", column_names.RANKS)):
        if found := table.sided(words, tie=False) or _beside(table, sides, words):
            settled = {f"{ours}_{side}": theirs for side, theirs in found.items()}
            yield _flat(f"{ours}s that decide", {**columns, **settled})
            taken |= set(found.values())
    yield from _people(table, sides, columns, taken)


def _prompt_to(table: Table, sides: tuple[str, str]) -> str | None:
    """Return the prompt's column, before others one with the prefix of the responses' columns.

    Data for judges has ``orig_instruction`` beside ``orig_response_A``, and in ``instruction`` what
    a judge was asked, both responses included.
    """
    names = [name for name in column_names.PROMPTS if name not in sides]
    prefix = re.match(rf"(.+?[_-])(?:{'|'.join(column_names.ANSWERS)})", sides[0], re.IGNORECASE)
    return table.find([*(prefix[1] + name for name in names if prefix), *names])


def _by_choice(
    table: Table,
    sides: tuple[str, str],
    columns: Mapping[str, str | None],
    taken: Collection[str],
) -> Iterator[Guess]:
    """Yield the guess that a column says who won: by side, model's name or the response itself."""
    for name in column_names.CHOSEN_BY:
        choice = table.find([name])
        if choice is None or choice in {*sides, *taken}:
            continue
        if _are_responses(table, sides, choice):
            yield _flat("winning response itself", {**columns, "choice": choice})
        elif (models := _models(table, choice)) is not None:
            yield _flat("winner by its model's name", {**columns, **models})
        elif _are_labels(table.values[choice]):
            yield _chosen(table, sides, choice, columns)


def _beside(table: Table, sides: tuple[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the fields of two responses that are objects: ``response_a.score``."""
    parents = [side.rpartition(".")[0] for side in sides]
    for name in names:
        paths = [f"{parent}.{name}" for parent in parents]
        if all(parents) and all(path in table.values for path in paths):
            return {"a": paths[0], "b": paths[1]}
    return {}


def _models(table: Table, choice: str) -> dict[str, str] | None:
    """Return the columns of the two models' names, where ``choice`` names one of them."""
    for word in _MODELS:
        found = table.sided((word,), tie=False)
        if not found:
            continue
        names = {word_of(v).casefold() for column in found.values() for v in table.values[column]}
        words = {word_of(value).casefold() for value in table.values[choice]}
        if words & names and all(word in names or word in CHOICES for word in words):
            return {"choice": choice, "model_a": found["a"], "model_b": found["b"]}
    return None


def _are_responses(table: Table, sides: tuple[str, str], choice: str) -> bool:
    """Tell whether a column tells the winning response once more."""
    named = [value for value in table.values[choice] if isinstance(value, str)]
    responses = {
        value.strip() for side in sides for value in table.values[side] if isinstance(value, str)
    }
    return len(named) > 0 and all(value.strip() in responses for value in named)


def _flat(name: str, columns: Mapping[str, str | None], **more: Any) -> Guess:
    settings = {"format": "flat", "columns": renames(columns), **more}
    return Guess(name, {key: part for key, part in settings.items() if part})


def _are_labels(values: Sequence[Any]) -> bool:
    """Tell whether a column may say who won: a few different words or numbers."""
    if any(isinstance(value, list | dict) for value in values):
        return False
    return all(finite_number(value) is not None for value in values) or (
        len({word_of(value) for value in values}) <= MAX_WORDS
    )


def _are_counts(values: Sequence[Any]) -> bool:
    numbers = [1.0 if isinstance(v, bool) else _truth(v) for v in values]
    return all(number is not None and number >= 0 for number in numbers)


def _truth(value: Any) -> float | None:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return 1.0
    return finite_number(value)


def _chosen(
    table: Table, sides: tuple[str, str], choice: str, columns: Mapping[str, str | None]
) -> Guess:
    """Return the guess that a column says the winner, by word or number."""
    numbers = [finite_number(value) for value in table.values[choice]]
    signed = [number for number in numbers if number is not None]
    if len(signed) == len(numbers) and any(number < 0 for number in signed):
        words = sorted({word_of(number) for number in signed})
        if choice.lower() in ("label", "labels") and set(words) <= {"-1", "0", "1"}:
            return Guess("a label", {}, question=ask(choice, words))
        guess = _flat("signed preference", {**columns, "preference": choice, "strength": None})
        guess.notes.append(f"{choice} below 0 is taken to mean that {sides[0]} is better")
        return guess
    guess = _flat("one choice a row", {**columns, "choice": choice})
    choices, note, question = label_choices(table.values[choice], choice, sides)
    if choices:
        guess.settings["choices"] = choices
    guess.notes += [note] if note else []
    guess.question = question
    return guess


def _by_name(
    table: Table, sides: tuple[str, str], columns: Mapping[str, str | None]
) -> Iterator[Guess]:
    """Yield the guess that a column named after one side says whether it won."""
    for name, values in table.values.items():
        parts = re.split(r"[^a-z0-9]+", name.lower())
        words = {word_of(value).casefold() for value in values}
        if name in sides or not words or not words <= set(WORDS_OF_TRUTH):
            continue
        named = {"a", "first", "left", "b", "second", "right"} & set(parts)
        says = {"better", "wins", "won", "preferred", "prefers", "prefer", "is", "best", "chosen"}
        if len(named) == 1 and says & set(parts):
            choices, _, _ = truth_choices(name, sides)
            yield _flat("one side won, or not", {**columns, "choice": name}, choices=choices)


def _people(
    table: Table,
    sides: tuple[str, str],
    columns: Mapping[str, str | None],
    taken: Collection[str],
) -> Iterator[Guess]:
    """Yield the guess that several columns are people, each cell a choice of theirs.

    A single one of words is a choice. Numbers are choices only where no column has words, and none
    of them is a quantity.
    """
    claimed = {*taken, *(theirs for theirs in columns.values() if theirs)}
    meant = {
        name: label_choices(values, name, sides)
        for name, values in table.values.items()
        if name not in claimed and "." not in name and _may_be_choices(values)
    }
    known = {name: choices for name, (choices, _, question) in meant.items() if not question}
    made = {name: choices for name, choices in known.items() if _is_made_of_votes(name)}
    own = {name: choices for name, choices in known.items() if name not in made}
    by_word, by_number = _words_and_numbers(table, own)
    if not by_word and len(by_number) < 2:
        by_word, by_number = _words_and_numbers(table, {**own, **dict(list(made.items())[:1])})
    people = by_word if len(by_word) > 1 else by_number
    if len(people) > 1:
        guess = _ballots(table, people, columns)
        if left := [name for name in made if name not in people]:
            guess.notes.append(f"made of votes, and no person's: {listed(left)}")
        yield guess
    elif len(by_word) == 1:
        yield _chosen(table, sides, next(iter(by_word)), columns)
    else:
        for name in by_number:
            if _SAYS & set(re.split(r"[^a-z]+", name.lower())):
                yield _chosen(table, sides, name, columns)


def _words_and_numbers(
    table: Table, known: Mapping[str, dict[str, Choice]]
) -> tuple[dict[str, dict[str, Choice]], dict[str, dict[str, Choice]]]:
    """Return the columns with words, and those with numbers that are no quantities."""
    by_word = {n: c for n, c in known.items() if not all(map(_is_number, table.values[n]))}
    by_number = {n: c for n, c in known.items() if n not in by_word and not table.is_quantity(n)}
    return by_word, by_number


def _is_made_of_votes(name: str) -> bool:
    """Tell whether a column is called like what people's choices were made into."""
    return bool(set(re.split(r"[^a-z]+", name.lower())) & column_names.MADE_OF_VOTES)


def _is_number(value: Any) -> bool:
    return finite_number(value) is not None


def _ballots(
    table: Table, people: Mapping[str, dict[str, Choice]], columns: Mapping[str, str | None]
) -> Guess:
    """Return the guess that these columns are people."""
    kept = {ours: theirs for ours, theirs in columns.items() if ours != "annotator"}
    choices = {word: side for meant in people.values() for word, side in meant.items()}
    guess = _flat("people as columns", kept, annotators=list(people), choices=choices)
    if choices:
        values = [value for name in people for value in table.values[name]]
        guess.settings["choices"] = {**built_in(values), **choices}
    return guess


def _may_be_choices(values: Sequence[Any]) -> bool:
    return bool(values) and not any(isinstance(value, list | dict | float) for value in values)
