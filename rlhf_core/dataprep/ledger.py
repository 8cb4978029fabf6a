"""What is known of each comparison besides its texts, and which response of it won."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import DialogueKey, Key, prompt_keys, response_keys, text_key
from rlhf_core.dataprep.sources.rows import Reason, comparison_problem
from rlhf_core.dataprep.votes.vote_table import Floats, Ints, decide
from rlhf_core.schema import Comparison, PreferencePair


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


def apply_votes(entries: Sequence[Entry], probabilities: Floats) -> None:
    """Write down who wins; ties are filtered out.

    Args:
        entries: all comparisons.
        probabilities: [N, 3] of a, b and tie, from a vote model.
    """
    beats, tied = decide(probabilities)
    for entry, probability, is_tie in zip(entries, beats.tolist(), tied.tolist(), strict=True):
        entry.a_beats_b = probability
        if is_tie:
            entry.filter_out("tie")


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


def filter_reserved(entries: Sequence[Entry], reserved: Set[DialogueKey]) -> None:
    """Filter out every comparison whose dialogue belongs to the held-out file."""
    for entry in entries:
        if entry.dialogue in reserved:
            entry.filter_out("prompt_is_heldout", "its first turn is that of a held-out prompt")


def resolve(item: Comparison, a_beats_b: float) -> PreferencePair:
    """Return the pair, with the winner's probability as its soft label.

        agreement   = (votes for the winner + votes for a tie / 2) / all votes
        probability = max(a_beats_b, 1 - a_beats_b)

    Args:
        item: a comparison that is no tie.
        a_beats_b: probability that ``response_a`` is better, from a vote model; by plain majority
            the share of its votes.
    """
    a_won = a_beats_b > 0.5
    winner = "a" if a_won else "b"
    won = item.votes_a if a_won else item.votes_b
    num_votes = len(item.votes)
    ties = num_votes - item.votes_a - item.votes_b
    strengths = [
        vote.strength for vote in item.votes if vote.choice == winner and vote.strength is not None
    ]
    return PreferencePair(
        comparison_id=item.comparison_id,
        prompt=item.prompt,
        chosen=item.response_a if a_won else item.response_b,
        rejected=item.response_b if a_won else item.response_a,
        agreement=(won + ties / 2) / num_votes,
        probability=max(a_beats_b, 1 - a_beats_b),
        num_votes=num_votes,
        tie_fraction=ties / num_votes,
        strength=sum(strengths) / len(strengths) if strengths else None,
        source=item.source,
        group=item.group,
        tags=item.tags,
    )
