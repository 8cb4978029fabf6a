"""Settings for a file whose shape nobody has named, from what its columns are called and hold.

A guess names what it takes for granted; what could mean either side is no guess but a question.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.config.data import WORDS_OF_TRUTH, word_of
from rlhf_core.dataprep.sources import shapes
from rlhf_core.dataprep.sources.columns import structured
from rlhf_core.dataprep.sources.labels import MAX_WORDS, ask, label_choices, truth_choices
from rlhf_core.dataprep.sources.words import CHOICES, finite_number
from rlhf_core.schema import Choice

_SUFFIXES = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"))
_WON = ("winner", "wins", "win", "won", "best", "preferred", "is_better", "better")
_VOTES = ("votes", "num_votes", "n_votes", "vote_count", "votes_for", "count", "num")
_MODELS = ("model", "model_name", "system", "name", "policy", "source", "generator")
_SCORED = ("score", "scores", "rating", "reward", "overall_score", "quality", "points")
_VOTE = {"annotator", "choice"}


@dataclass(slots=True)
class Guess:
    """Settings that may fit, and what has to be said of them."""

    shape: str
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    question: str = ""
    """What only people can answer before the file can be read."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of some rows and what they hold."""

    values: Mapping[str, Sequence[Any]]
    """Column, or path of a field one level down, to its values that are not blank."""

    def find(self, names: Sequence[str]) -> str | None:
        """Return the first column of one of these names, letter case aside, fields last."""
        by_name: dict[str, str] = {}
        for path in sorted(self.values, key=lambda path: path.count(".")):
            by_name.setdefault(path.rpartition(".")[2].lower(), path)
        return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)

    def both(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Return the first two columns that are called like a pair."""
        for one, two in pairs:
            found = self.find([one]), self.find([two])
            if found[0] is not None and found[1] is not None and found[0] != found[1]:
                return found[0], found[1]
        return None

    def sided(self, words: Sequence[str], *, tie: bool = True) -> dict[str, str]:
        """Return the columns of a quantity of each side: ``votes_a``, ``a_wins``, ``score1``."""
        for word in words:
            for sides in (*_SUFFIXES, ("model_a", "model_b"), ("response_a", "response_b")):
                names = [_spellings(word, side) for side in sides]
                one, two = self.find(names[0]), self.find(names[1])
                if one is not None and two is not None:
                    third = (
                        self.find([f"{word}_tie", f"tie_{word}", "tie", "ties"]) if tie else None
                    )
                    return {"a": one, "b": two} | ({"tie": third} if third else {})
        return {}

    def is_quantity(self, name: str) -> bool:
        """Tell whether numbers of a column are no choices: ``turn``, ``length_a``, ``score 1``."""
        if set(re.split(r"[^a-z]+", name.lower())) & set(shapes.QUANTITIES):
            return True
        parts = re.fullmatch(r"(.*?)([_ ]?)(a|b|0|1|2)", name, re.IGNORECASE)
        if parts is None or not parts[1]:
            return bool(re.match(r"[ab][_ ]", name, re.IGNORECASE))
        stem = parts[1] + parts[2]
        several = [self.find([f"{stem}{end}"]) is not None for end in "ab0123"]
        return sum(several) == 2 and parts[1].lower() not in shapes.PEOPLE


def _spellings(word: str, side: str) -> list[str]:
    return [f"{word}_{side}", f"{side}_{word}", f"{word}{side}", f"{word} {side}", f"{side} {word}"]


def guesses(table: Table) -> Iterator[Guess]:
    """Yield what the columns may be, the surest first."""
    if (pair := table.both(shapes.PAIRS)) is not None:
        yield _decided(table, pair)
    if (sides := _sides(table)) is not None:
        yield from _voted(table, sides)
        yield from _compared(table, sides)
    yield from _lists(table)
    if any(name.endswith(".replies") for name in table.values):
        yield Guess("tree of ranked replies", {"format": "tree"})


def _others(table: Table, *names: str) -> dict[str, str]:
    found = {name: table.find(shapes.OTHERS[name]) for name in names}
    return {name: theirs for name, theirs in found.items() if theirs is not None}


def _renames(columns: Mapping[str, str | None]) -> dict[str, str]:
    """Return what has to be renamed."""
    return {ours: theirs for ours, theirs in columns.items() if theirs and ours != theirs}


def _decided(table: Table, pair: tuple[str, str]) -> Guess:
    columns = {"prompt": table.find(shapes.PROMPTS), "chosen": pair[0], "rejected": pair[1]}
    columns |= _others(table, "system")
    settings = {"format": "pairs", "columns": _renames(columns)}
    return Guess("winner and loser", settings)


def _sides(table: Table) -> tuple[str, str] | None:
    """Return the columns of the two responses: known names, or any two texts told apart so."""
    if (known := table.both(shapes.SIDES)) is not None:
        return known
    for name in table.values:
        for one, two in _SUFFIXES:
            stem = re.fullmatch(rf"(.*?)([_ -]?){one}", name, re.IGNORECASE)
            if stem is None or not stem[1]:
                continue
            other = table.find([f"{stem[1]}{stem[2]}{two}"])
            if other is not None and _are_texts(table.values[name]):
                return name, other
    return None


def _are_texts(values: Sequence[Any]) -> bool:
    texts = [value for value in values if isinstance(value, str | list | dict)]
    numbers = [value for value in texts if finite_number(value) is not None]
    return len(texts) == len(values) > 0 and not numbers


def _compared(table: Table, sides: tuple[str, str]) -> Iterator[Guess]:
    """Yield the ways in which columns may say which of two responses is better."""
    columns: dict[str, str | None] = {
        "prompt": table.find([name for name in shapes.PROMPTS if name not in sides]),
        "response_a": sides[0],
        "response_b": sides[1],
    }
    columns |= _others(table, "annotator", "comparison_id", "seconds", "system")
    strength = _others(table, "strength")
    taken: set[str] = set()
    for ours, words, name in (
        ("winner", _WON, "one-hot winner"),
        ("votes", _VOTES, "counts of votes"),
    ):
        found = table.sided(words)
        if found and all(_are_counts(table.values[theirs]) for theirs in found.values()):
            settled = {f"{ours}_{side}": theirs for side, theirs in found.items()}
            yield _flat(name, {**columns, **settled})
            taken |= set(found.values())
    for name in shapes.CHOSEN_BY:
        choice = table.find([name])
        if choice is None or choice in sides or choice in taken:
            continue
        if (models := _models(table, choice)) is not None:
            yield _flat("winner by its model's name", {**columns, **strength, **models})
        elif _are_labels(table.values[choice]):
            yield _chosen(table, sides, choice, {**columns, **strength})
    yield from _by_name(table, sides, {**columns, **strength})
    if found := table.sided(_SCORED, tie=False):
        settled = {f"score_{side}": theirs for side, theirs in found.items()}
        yield _flat("scores that decide", {**columns, **settled})
        taken |= set(found.values())
    yield from _people(table, sides, columns, taken)


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


def _voted(table: Table, sides: tuple[str, str]) -> Iterator[Guess]:
    """Yield the guess that a column is a list of votes as records have them."""
    for name, values in table.values.items():
        lists = [_as_list(value) for value in values]
        votes = [vote for entries in lists for vote in entries or ()]
        if votes and all(isinstance(vote, dict) and set(vote) >= _VOTE for vote in votes):
            columns = {
                "prompt": table.find(shapes.PROMPTS),
                "response_a": sides[0],
                "response_b": sides[1],
                "votes": name,
            }
            columns |= _others(table, "comparison_id", "system")
            yield Guess("lists of votes", {"format": "canonical", "columns": _renames(columns)})


def _flat(name: str, columns: Mapping[str, str | None], **more: Any) -> Guess:
    settings = {"format": "flat", "columns": _renames(columns), **more}
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

    Numbers are choices only where no column has words, and none of them is a quantity.
    """
    claimed = {*taken, *(theirs for theirs in columns.values() if theirs)}
    by_word: dict[str, dict[str, Choice]] = {}
    by_number: dict[str, dict[str, Choice]] = {}
    for name, values in table.values.items():
        if name in claimed or "." in name or not _may_be_choices(values):
            continue
        meant, _, question = label_choices(values, name, sides)
        if question:
            continue
        if any(finite_number(value) is None for value in values):
            by_word[name] = meant
        elif not table.is_quantity(name):
            by_number[name] = meant
    people = by_word if len(by_word) > 1 else by_number
    if len(people) > 1:
        kept = {ours: theirs for ours, theirs in columns.items() if ours != "annotator"}
        choices = {word: side for meant in people.values() for word, side in meant.items()}
        guess = _flat("people as columns", kept, annotators=list(people), choices=choices)
        if choices:
            words = {word_of(v).lower() for name in people for v in table.values[name]}
            known = {word: CHOICES[word] for word in words if word in CHOICES}
            guess.settings["choices"] = {**known, **choices}
        yield guess


def _may_be_choices(values: Sequence[Any]) -> bool:
    return bool(values) and not any(isinstance(value, list | dict | float) for value in values)


def _lists(table: Table) -> Iterator[Guess]:
    """Yield the ways in which a column may hold several answers, with ranks or scores."""
    prompt = table.find(shapes.PROMPTS)
    for name in shapes.LISTS:
        column = table.find([name])
        if column is None:
            continue
        lists = [_as_list(value) for value in table.values[column]]
        entries = [entry for value in lists for entry in value or ()]
        if not entries:
            continue
        columns = {"prompt": prompt, "responses": column}
        if all(isinstance(entry, dict) for entry in entries):
            fields = list(entries[0])
            text = next((f for f in shapes.TEXTS if f in fields), None)
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
    for ours, names in (("ranks", shapes.RANKS), ("scores", shapes.SCORES)):
        by_name = {
            name.lower().removesuffix("s"): path
            for name, path in reversed(found)
            if name != "rankings" and (".*." in path or all(map(_as_list, table.values[path])))
        }
        for name in names:
            if name in by_name or name.removesuffix("s") in by_name:
                columns[ours] = by_name.get(name) or by_name[name.removesuffix("s")]
                settings = {"format": "ranked", "columns": _renames(columns)}
                return Guess(f"list with {ours}", settings)
    guess = Guess("ranked list", {"format": "ranked", "columns": _renames(columns)})
    if (best := table.find(shapes.BEST)) is not None and best != columns["prompt"]:
        return _best(guess, best, table.values[best], lengths)
    if "rankings" not in table.values:
        guess.notes.append("the answers are taken to stand best first")
    return guess


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
            f" from 1 cannot be told; say it in columns: {{best_index: {column}}}, or"
            f" {{best_number: {column}}} where the first answer is 1"
        )
        return guess
    ours = "best_index" if min(known) == 0 else "best_number"
    guess.shape = "list with the best answer's place"
    guess.settings["columns"] = {**guess.settings["columns"], ours: column}
    guess.notes.append(f"{column} is taken to count from {0 if min(known) == 0 else 1}")
    return guess


def _as_list(value: Any) -> list[Any] | None:
    value = structured(value) if isinstance(value, str) else value
    return value if isinstance(value, list) else None
