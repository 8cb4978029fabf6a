"""All votes of a dataset as columns, how far each person's are right, and who wins."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_core.schema import Choice, Vote

CHOICES: tuple[Choice, ...] = ("a", "b", "tie")
_CODES = {choice: code for code, choice in enumerate(CHOICES)}

_COLUMNS = ("comparison", "annotator", "choice", "seconds", "strength")
_LEVEL = 1e-9
"""Probabilities closer than this are level."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(slots=True)
class VoteTable:
    """One entry a vote; comparisons and annotators by number."""

    comparison: "array[int]" = field(default_factory=lambda: array("i"))
    annotator: "array[int]" = field(default_factory=lambda: array("i"))
    choice: "array[int]" = field(default_factory=lambda: array("b"))
    """Index into ``CHOICES``."""
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    """NaN where the source has no times."""
    strength: "array[float]" = field(default_factory=lambda: array("d"))
    """NaN where the source does not say how much better."""
    names: dict[str, int] = field(default_factory=dict)
    """Annotator to number, in order of appearance."""

    def add(self, comparison: int, votes: Sequence[Vote]) -> None:
        """Add the votes on the comparison with this number."""
        for vote in votes:
            self.comparison.append(comparison)
            self.annotator.append(self.names.setdefault(vote.annotator, len(self.names)))
            self.choice.append(_CODES[vote.choice])
            self.seconds.append(np.nan if vote.seconds is None else vote.seconds)
            self.strength.append(np.nan if vote.strength is None else vote.strength)

    def ballots(self, comparisons: Sequence[int]) -> dict[int, tuple[Vote, ...]]:
        """Return the votes on some comparisons, by their number."""
        wanted = np.isin(np.array(self.comparison, dtype=np.int64), comparisons)
        names = list(self.names)
        found: dict[int, list[Vote]] = {number: [] for number in comparisons}
        for place in np.flatnonzero(wanted).tolist():
            vote = Vote(
                annotator=names[self.annotator[place]],
                choice=CHOICES[self.choice[place]],
                strength=_number(self.strength[place]),
                seconds=_number(self.seconds[place]),
            )
            found[self.comparison[place]].append(vote)
        return {number: tuple(votes) for number, votes in found.items()}

    def drop(self, comparisons: Sequence[int]) -> None:
        """Take out the votes on some comparisons."""
        if not comparisons:
            return
        stays = ~np.isin(np.array(self.comparison, dtype=np.int64), comparisons)
        for name in _COLUMNS:
            column: array[Any] = getattr(self, name)
            kept = np.array(column)[stays]
            setattr(self, name, array(column.typecode, kept.tobytes()))

    def only(self, stays: NDArray[np.bool_]) -> "VoteTable":
        """Return the votes on the comparisons where ``stays`` [N] is True; all numbers stay."""
        kept = replace(self)
        for name in _COLUMNS:
            column: array[Any] = getattr(self, name)
            votes = np.array(column)[stays[np.array(self.comparison, dtype=np.int64)]]
            setattr(kept, name, array(column.typecode, votes.tobytes()))
        return kept

    def columns(self) -> tuple[Ints, Ints, Ints]:
        """Return [N] comparison, annotator and choice numbers."""
        return (
            np.array(self.comparison, dtype=np.int64),
            np.array(self.annotator, dtype=np.int64),
            np.array(self.choice, dtype=np.int64),
        )

    def counts(self, num_comparisons: int) -> Ints:
        """Return [num_comparisons, 3] votes for a, b and tie."""
        comparison, _, choice = self.columns()
        flat = np.bincount(comparison * len(CHOICES) + choice, minlength=num_comparisons * 3)
        return flat.reshape(num_comparisons, len(CHOICES))


def reliability(table: VoteTable, probabilities: Floats) -> dict[str, float]:
    """Probability that an annotator's answer is right: mean posterior of the answers given.

    Args:
        table: votes; who has none in it is left out.
        probabilities: [N, 3] of a, b and tie, from a vote model; by ``majority`` it is the
            mean share of the votes for their answer, their own included.
    """
    comparison, annotator, choice = table.columns()
    size = len(table.names)
    right = np.bincount(annotator, weights=probabilities[comparison, choice], minlength=size)
    num_votes = np.bincount(annotator, minlength=size)
    return {
        name: float(right[number] / num_votes[number])
        for name, number in table.names.items()
        if num_votes[number]
    }


def decide(probabilities: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Who wins, given the posterior of the three answers; a tie is half a win for each side.

        P(a beats b) = (P(a) + P(tie) / 2) / (P(a) + P(b) + P(tie))

    Args:
        probabilities: [N, 3] of a, b and tie.

    Returns:
        [N] P(a beats b), one half where nothing has any mass; and [N] True where the comparison
        is a tie: a and b are level, or a tie is more probable than either.
    """
    a, b, tie = probabilities.T
    # So that the same answers the other way round give the complement to the last bit.
    mass = a + b + tie
    lead = np.divide(a - b, mass, out=np.zeros_like(a), where=mass > 0)
    better = (1 + np.abs(lead)) / 2
    return np.where(lead < 0, 1 - better, better), (np.abs(a - b) < _LEVEL) | (
        tie > np.maximum(a, b) + _LEVEL
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
