"""What is known of each comparison besides its texts: columns of one ledger, kept in memory."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import (
    DialogueKey,
    Key,
    distinct_keys,
    prompt_keys,
    response_key,
    text_key,
)
from rlhf_core.dataprep.sources.rows import Reason, comparison_problem
from rlhf_core.dataprep.votes.vote_table import Ints
from rlhf_core.schema import Comparison
from rlhf_core.statistics.clusters import numbered

_KEY_BYTES = 16
_STAYS = 0
"""Number of the reason of a row that is not filtered out."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One comparison in the ledger."""

    prompt: Key
    dialogue: DialogueKey
    """Of the prompt; what is split, and what intervals count as one."""
    pair: Key
    """The prompt with its two responses, whichever comes first."""
    a_first: bool
    """Whether ``response_a`` comes first in the order ``pair`` uses."""
    source: str
    line: int
    num_chars: tuple[int, int]
    """Lengths of response a and response b."""
    reason: Reason | None
    """Why the row is filtered out; None while it stays."""
    detail: str = ""
    a_beats_b: float = 0.5
    """Probability that response a is better."""
    group: str = ""
    """Comparisons of one ranked list share it; empty where there is no list."""
    answers: tuple[int, int] = (0, 0)
    """Numbers of the prompt with response a and with response b: those that read the same have the
    same number, and others seldom."""

    @property
    def place(self) -> str:
        """Source and line, for messages."""
        return f"{self.source}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Columns of comparisons of which it is decided who won."""

    num_chars: Ints
    """[N, 2] lengths of response a and response b."""
    a_won: NDArray[np.bool_]
    """[N]"""
    dialogue: Ints
    """[N] equal numbers for one dialogue."""
    source: Ints
    """[N] place in ``sources``."""
    dialogues: tuple[DialogueKey, ...]
    """By number."""
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.a_won)

    def only(self, rows: NDArray[np.bool_] | Ints) -> "Labelled":
        """Return some of the rows; all numbers stay."""
        return Labelled(
            num_chars=self.num_chars[rows],
            a_won=self.a_won[rows],
            dialogue=self.dialogue[rows],
            source=self.source[rows],
            dialogues=self.dialogues,
            sources=self.sources,
        )


class _Names:
    """Texts by number, each held once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self.of_row = array("l")

    def append(self, name: str) -> None:
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        self.of_row.append(number)

    def __getitem__(self, row: int) -> str:
        return self.names[self.of_row[row]]


class Ledger:
    """The entries of all comparisons as columns: some hundred bytes each."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """Begin with ``entries``."""
        self._prompts, self._dialogues, self._pairs = bytearray(), bytearray(), bytearray()
        self._sources, self._groups = _Names(), _Names()
        self._a_first, self._reason = array("b"), array("b")
        self._line, self._num_chars = array("q"), array("q")
        self._answers = array("Q")
        self._reasons: list[Reason | None] = [None]
        self._details: dict[int, str] = {}
        self.a_beats_b: array[float] = array("d")
        """Of each row; to be written into once a model of the votes has spoken."""
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        self._prompts += entry.prompt
        self._dialogues += entry.dialogue
        self._pairs += entry.pair
        self._sources.append(entry.source)
        self._groups.append(entry.group)
        self._a_first.append(entry.a_first)
        self._line.append(entry.line)
        self._num_chars.extend(entry.num_chars)
        self._answers.extend(entry.answers)
        self.a_beats_b.append(entry.a_beats_b)
        self._reason.append(_STAYS)
        if entry.reason is not None:
            self.filter_out(len(self) - 1, entry.reason, entry.detail)

    def __len__(self) -> int:
        return len(self._reason)

    def __getitem__(self, row: int) -> Entry:
        return Entry(
            prompt=self.prompt(row),
            dialogue=self.dialogue(row),
            pair=self.pair(row),
            a_first=bool(self._a_first[row]),
            source=self._sources[row],
            line=self._line[row],
            num_chars=(self._num_chars[2 * row], self._num_chars[2 * row + 1]),
            reason=self.reason(row),
            detail=self._details.get(row, ""),
            a_beats_b=self.a_beats_b[row],
            group=self._groups[row],
            answers=(self._answers[2 * row], self._answers[2 * row + 1]),
        )

    def __iter__(self) -> Iterator[Entry]:
        return map(self.__getitem__, range(len(self)))

    def prompt(self, row: int) -> Key:
        """Return the key of a row's prompt."""
        return _key(self._prompts, row)

    def dialogue(self, row: int) -> DialogueKey:
        """Return the key of a row's dialogue."""
        return DialogueKey(_key(self._dialogues, row))

    def pair(self, row: int) -> Key:
        """Return the key of a row's prompt and responses."""
        return _key(self._pairs, row)

    def line(self, row: int) -> int:
        """Return a row's line in its source."""
        return self._line[row]

    def reason(self, row: int) -> Reason | None:
        """Return why a row is filtered out; None while it stays."""
        return self._reasons[self._reason[row]]

    def filter_out(self, row: int, reason: Reason, detail: str = "") -> None:
        """Filter a row out, unless it already is."""
        if self._reason[row] != _STAYS:
            return
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._reason[row] = self._reasons.index(reason)
        if detail:
            self._details[row] = detail

    def staying(self) -> list[int]:
        """Return the rows that stay so far."""
        rows: list[int] = np.flatnonzero(self.have(None)).tolist()
        return rows

    def duplicated_pairs(self) -> list[int]:
        """Return the rows that stay and may have the pair of another one; of others none has."""
        rows = np.flatnonzero(self.have(None))
        begin = np.frombuffer(self._pairs, dtype=np.uint64)[:: _KEY_BYTES // 8][rows]
        duplicated: list[int] = rows[_are_repeated(begin)].tolist()
        return duplicated

    def readings(self) -> Ints:
        """[N] number of the reading of a source that brought each row.

        Within one, lines do not go back, and no pair is on one line twice in a row.
        """
        source = np.array(self._sources.of_row, dtype=np.int64)
        order = np.argsort(source, kind="stable")
        source, line = source[order], np.array(self._line, dtype=np.int64)[order]
        pair = np.frombuffer(self._pairs, dtype=np.uint64)[:: _KEY_BYTES // 8][order]
        begins = (source[1:] != source[:-1]) | (line[1:] < line[:-1])
        begins |= (line[1:] == line[:-1]) & (pair[1:] == pair[:-1])
        found = np.zeros(len(self), dtype=np.int64)
        found[order[1:]] = np.cumsum(begins)
        return found

    def sharing_prompt_and_winner(self) -> NDArray[np.bool_]:
        """[N] rows that stay, whose prompt and winner another one may have; no others do."""
        rows = np.flatnonzero(self.have(None))
        is_b = np.array(self.a_beats_b)[rows] <= 0.5
        winners = np.array(self._answers).reshape(-1, 2)[rows, is_b.astype(np.int64)]
        found = np.zeros(len(self), dtype=np.bool_)
        found[rows] = _are_repeated(winners)
        return found

    def have(self, reason: Reason | None) -> NDArray[np.bool_]:
        """[N] which rows are filtered out for a reason; with None which stay."""
        number = self._reasons.index(reason) if reason in self._reasons else -1
        found: NDArray[np.bool_] = np.array(self._reason) == number
        return found

    def reasons(self) -> Counter[Reason]:
        """Count the rows that are filtered out by reason."""
        found = Counter(map(self._reasons.__getitem__, self._reason))
        return Counter({reason: count for reason, count in found.items() if reason is not None})

    def by_source(self, rows: Ints) -> dict[str, Ints]:
        """Return some rows by their source, sources in the order of those rows."""
        source = np.array(self._sources.of_row, dtype=np.int64)[rows]
        return {
            self._sources.names[number]: rows[source == number]
            for number in dict.fromkeys(source.tolist())
        }

    def groups(self) -> list[str]:
        """[N] ranked list of each row."""
        return list(map(self._groups.__getitem__, range(len(self))))

    def labelled(self) -> Labelled:
        """Return what is measured of the rows that stay."""
        rows = self.staying()
        keys = list(map(self.dialogue, rows))
        sources = np.array(self._sources.of_row, dtype=np.int64)[rows]
        return Labelled(
            num_chars=np.array(self._num_chars, dtype=np.int64).reshape(-1, 2)[rows],
            a_won=np.array(self.a_beats_b)[rows] > 0.5,
            dialogue=numbered(keys),
            source=sources,
            dialogues=tuple(dict.fromkeys(keys)),
            sources=tuple(self._sources.names),
        )


def _are_repeated(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[N] whether each value stands there more than once."""
    order = np.argsort(values, kind="stable")
    is_same = values[order[1:]] == values[order[:-1]]
    found = np.zeros(len(values), dtype=np.bool_)
    found[order[1:][is_same]] = found[order[:-1][is_same]] = True
    return found


def _key(keys: bytearray, row: int) -> Key:
    return bytes(keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES])


def enter(item: Comparison) -> Entry:
    """Return the ledger's entry of one comparison, screened on its own."""
    prompt, dialogue = prompt_keys(item.prompt)
    said_a, said_b = response_key(item.response_a), response_key(item.response_b)
    key_a, key_b = distinct_keys((said_a, said_b), item.response_a, item.response_b)
    first, second = sorted((key_a, key_b))
    return Entry(
        prompt=prompt,
        dialogue=dialogue,
        pair=text_key((prompt + first + second).hex()),
        a_first=key_a == first,
        source=item.source,
        line=item.line or 0,
        num_chars=(len(item.response_a), len(item.response_b)),
        reason=comparison_problem(item),
        group=item.group,
        answers=(_number(prompt) ^ _number(said_a), _number(prompt) ^ _number(said_b)),
    )


def _number(key: Key) -> int:
    return int.from_bytes(key[:8])


def votes_to_train_on(entries: Ledger, counts: Ints) -> NDArray[np.bool_]:
    """[N] whether the votes on a comparison are of those that training rests on.

    They are where the comparison stays, and where people were split: to leave the split ones out
    would make agreement of any votes, for with two a comparison no others stay. They are not where
    most called it a tie, nor where the row went for another reason.

    Agreed ties are left out by their outcome, so that alpha of the rest is not 0 at chance but
    below: with a third of the votes ties, -0.14 of two votes a comparison, -0.09 of three, -0.05 of
    five; with a tenth, -0.02, -0.02 and -0.005. It says less agreement than there is, never more.

    Args:
        entries: all comparisons, once it is decided which stay.
        counts: [N, 3] votes for a, b and tie.
    """
    is_split = counts[:, 0] + counts[:, 1] > counts[:, 2]
    return entries.have(None) | (entries.have("tie") & is_split)
