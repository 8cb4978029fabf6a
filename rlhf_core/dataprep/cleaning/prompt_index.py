"""Which prompts nearly give a held-out one away: by all they say, or by how they open."""

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.cleaning.near import bands_of
from rlhf_core.dataprep.cleaning.signature_rows import SignatureRows
from rlhf_core.dataprep.cleaning.signatures import (
    Signature,
    SignatureTable,
    signature,
    similarity,
)
from rlhf_core.dataprep.keys import DialogueKey, Key, first_turn
from rlhf_core.schema import Comparison, Conversation

Ints = NDArray[np.int64]


def prompt_text(prompt: Conversation) -> str:
    """Return the text a prompt is compared by: all its turns."""
    return "\n".join(turn.content for turn in prompt)


def prompt_signatures(prompt: Conversation) -> list[Signature]:
    """Return what a prompt is known by: all of it and, where it has more, its first turn."""
    start = first_turn(prompt)
    parts = [prompt] if len(start) == len(prompt) else [prompt, start]
    return [signature(prompt_text(part)) for part in parts]


class RowSignatures:
    """Of comparisons: responses and prompt of each row, and the first turn of each dialogue."""

    def __init__(self) -> None:
        """Start empty."""
        self.responses = SignatureTable()
        self._prompts, self._first_turns = SignatureTable(), SignatureTable()
        self._prompt_of_row: array[int] = array("q")
        self._place_of: dict[Key, int] = {}
        self._opening_of: dict[DialogueKey, int] = {}

    def prompts_of(self, rows: Ints) -> Ints:
        """[N] number of the prompt of each row, equal ones for equal prompts."""
        found: Ints = np.array(self._prompt_of_row, dtype=np.int64)[rows]
        return found

    def of_rows(self, rows: Sequence[int]) -> tuple[SignatureRows, SignatureRows]:
        """Return [N, NUM_PERMUTATIONS] of the responses of rows and of their prompts."""
        prompts = np.array(self._prompt_of_row, dtype=np.int64)[rows]
        return (
            SignatureRows(self.responses.array(), rows),
            SignatureRows(self._prompts.array(), prompts),
        )

    def extend(self, rows: Sequence[tuple[Comparison, Key, DialogueKey]]) -> None:
        """Append comparisons, with the keys of their prompts and dialogues."""
        prompts: list[tuple[str]] = []
        first_turns: list[tuple[str]] = []
        for item, prompt, dialogue in rows:
            # Prompts of one key read the same once they are normalised, and so do their triples.
            place = self._place_of.setdefault(prompt, len(self._place_of))
            if place == len(self._prompts) + len(prompts):
                prompts.append((prompt_text(item.prompt),))
            self._prompt_of_row.append(place)
            if dialogue != prompt and dialogue not in self._opening_of:
                self._opening_of[dialogue] = len(self._opening_of)
                first_turns.append((prompt_text(first_turn(item.prompt)),))
        self.responses.extend([sorted((item.response_a, item.response_b)) for item, _, _ in rows])
        self._prompts.extend(prompts)
        self._first_turns.extend(first_turns)

    def of_prompt(self, row: int, dialogue: DialogueKey) -> list[Signature]:
        """Return what a prompt is known by: all of it and, where it has more, its first turn."""
        found = [self._prompts.array()[self._prompt_of_row[row]]]
        place = self._opening_of.get(dialogue)
        return found if place is None else [*found, self._first_turns.array()[place]]


class PromptIndex:
    """Held-out prompts, ready to be asked whether a training prompt gives one away."""

    def __init__(self, threshold: float) -> None:
        """Ask for prompts at least this similar."""
        self._threshold = threshold
        bands, rows = bands_of(threshold)
        width = rows * np.dtype(np.uint32).itemsize
        self._ends = [(start, start + width) for start in range(0, bands * width, width)]
        self._buckets: list[dict[bytes, array[int]]] = [{} for _ in self._ends]
        """By band: the places in ``_table`` of signatures that share it."""
        self._table = SignatureTable()
        self._known: set[bytes] = set()

    def add(self, signatures: Iterable[Signature]) -> None:
        """Add a held-out prompt: the signatures of all of it and of its first turn."""
        for hashed in signatures:
            key = hashed.tobytes()
            if key not in self._known:
                self._known.add(key)
                for bucket, (start, end) in zip(self._buckets, self._ends, strict=True):
                    bucket.setdefault(key[start:end], array("q")).append(len(self._table))
                self._table.append(hashed)

    def near(self, signatures: Iterable[Signature]) -> bool:
        """Tell whether a prompt, or how it opens, is nearly that of a held-out one.

        Candidates share a band of a signature (locality-sensitive hashing).
        """
        return any(
            bool((similarity(others, hashed) >= self._threshold).any())
            for hashed in signatures
            for others in self._sharing_a_band(hashed)
        )

    def _sharing_a_band(self, hashed: Signature) -> Iterator[NDArray[np.uint32]]:
        """Yield [n, NUM_PERMUTATIONS] at once: of texts from one template there are thousands."""
        key = hashed.tobytes()
        for bucket, (start, end) in zip(self._buckets, self._ends, strict=True):
            if places := bucket.get(key[start:end]):
                yield self._table.array()[np.frombuffer(places, dtype=np.int64)]
