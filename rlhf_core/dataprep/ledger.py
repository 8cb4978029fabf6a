"""What is known of each comparison besides its texts: one entry a row, kept in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import DialogueKey, Key, prompt_keys, response_keys, text_key
from rlhf_core.dataprep.sources.rows import Reason, comparison_problem
from rlhf_core.dataprep.votes.vote_table import Ints
from rlhf_core.schema import Comparison


@dataclass(slots=True)
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

    @property
    def place(self) -> str:
        """Source and line, for messages."""
        return f"{self.source}, line {self.line}"

    def filter_out(self, reason: Reason, detail: str = "") -> None:
        """Filter the row out, unless it already is."""
        if self.reason is None:
            self.reason, self.detail = reason, detail


def enter(item: Comparison) -> Entry:
    """Return the ledger's entry of one comparison, screened on its own."""
    prompt, dialogue = prompt_keys(item.prompt)
    key_a, key_b = response_keys(item.response_a, item.response_b)
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
    )


def votes_to_train_on(entries: Sequence[Entry], counts: Ints) -> NDArray[np.bool_]:
    """[N] whether the votes on a comparison are of those that training rests on.

    They are where the comparison stays, and where people were split: to leave the split ones out
    would make agreement of any votes, for with two a comparison no others stay. They are not where
    most called it a tie, nor where the row went for another reason.

    Args:
        entries: all comparisons, once it is decided which stay.
        counts: [N, 3] votes for a, b and tie.
    """
    is_split = counts[:, 0] + counts[:, 1] > counts[:, 2]
    reasons = [entry.reason for entry in entries]
    stays = np.array([reason is None for reason in reasons], dtype=bool)
    return stays | (np.array([reason == "tie" for reason in reasons], dtype=bool) & is_split)
