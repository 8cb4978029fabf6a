"""Which prompts nearly give a held-out one away: by all they say, or by how they open."""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.cleaning.near import (
    NUM_PERMUTATIONS,
    Signature,
    SignatureTable,
    bands_of,
    empty_sketch,
    signature,
    similarity,
)
from rlhf_core.dataprep.keys import DialogueKey, Key, first_turn
from rlhf_core.schema import Comparison, Conversation

if TYPE_CHECKING:
    from datasketch import MinHash


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

    @property
    def prompts(self) -> NDArray[np.uint32]:
        """[N, NUM_PERMUTATIONS] of each row's prompt, which many rows may share."""
        return self._prompts.array()[np.array(self._prompt_of_row, dtype=np.int64)]

    def add(self, item: Comparison, prompt: Key, dialogue: DialogueKey) -> None:
        """Append a comparison, whose prompt and dialogue have these keys."""
        self.responses.add(*sorted((item.response_a, item.response_b)))
        # Prompts of one key read the same once they are normalised, and so do their triples.
        is_new = prompt not in self._place_of
        self._prompt_of_row.append(self._place_of.setdefault(prompt, len(self._place_of)))
        if is_new:
            self._prompts.add(prompt_text(item.prompt))
        if dialogue != prompt and dialogue not in self._opening_of:
            self._opening_of[dialogue] = len(self._opening_of)
            self._first_turns.add(prompt_text(first_turn(item.prompt)))

    def of_prompt(self, row: int, dialogue: DialogueKey) -> list[Signature]:
        """Return what a prompt is known by: all of it and, where it has more, its first turn."""
        found = [self._prompts.array()[self._prompt_of_row[row]]]
        place = self._opening_of.get(dialogue)
        return found if place is None else [*found, self._first_turns.array()[place]]


class PromptIndex:
    """Held-out prompts, ready to be asked whether a training prompt gives one away."""

    def __init__(self, threshold: float) -> None:
        """Ask for prompts at least this similar."""
        from datasketch import MinHashLSH

        self._threshold = threshold
        self._lsh = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=bands_of(threshold))
        self._signatures: dict[bytes, Signature] = {}

    def add(self, signatures: Iterable[Signature]) -> None:
        """Add a held-out prompt: the signatures of all of it and of its first turn."""
        for hashed in signatures:
            key = hashed.tobytes()
            if key not in self._signatures:
                self._lsh.insert(key, _sketch(hashed))
                self._signatures[key] = hashed

    def near(self, signatures: Iterable[Signature]) -> bool:
        """Tell whether a prompt, or how it opens, is nearly that of a held-out one."""
        return any(
            similarity(hashed, self._signatures[key]) >= self._threshold
            for hashed in signatures
            for key in self._lsh.query(_sketch(hashed))
        )


def _sketch(hashed: Signature) -> "MinHash":
    sketch = empty_sketch().copy()
    sketch.hashvalues = hashed.astype(np.uint64)
    return sketch
