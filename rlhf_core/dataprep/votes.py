"""All votes of a dataset as columns, and the models that turn them into preferences."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlhf_core.dataprep.rows import UNNAMED
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Choice, Vote

CHOICES: tuple[Choice, ...] = ("a", "b", "tie")
_CODES = {choice: code for code, choice in enumerate(CHOICES)}

_MAX_UNNAMED_FRACTION = 0.5
"""Where more votes name nobody, models of annotators would count heads under another name."""
_LEVEL = 1e-9
"""Probabilities closer than this are level."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(slots=True)
class VoteTable:
    """One entry a vote; comparisons and annotators by number."""

    comparison: "array[int]" = field(default_factory=lambda: array("q"))
    annotator: "array[int]" = field(default_factory=lambda: array("q"))
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
        for name in ("comparison", "annotator", "choice", "seconds", "strength"):
            column: array[Any] = getattr(self, name)
            kept = np.array(column)[stays]
            setattr(self, name, array(column.typecode, kept.tobytes()))

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


def majority(table: VoteTable, num_comparisons: int) -> Floats:
    """Share of the votes for each answer: [num_comparisons, 3], rows of zeros without votes."""
    counts = table.counts(num_comparisons)
    shares: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def dawid_skene(table: VoteTable, num_comparisons: int) -> Floats:
    """Posterior of each answer where every annotator has a confusion matrix, fitted with EM.

    Dawid & Skene (1979), Applied Statistics 28(1), through crowd-kit.

    Returns:
        [num_comparisons, 3] probabilities of a, b and tie; rows of zeros without votes.
    """
    return _fit(_crowdkit().DawidSkene(n_iter=100, tol=1e-5), table, num_comparisons)


def mace(table: VoteTable, num_comparisons: int) -> Floats:
    """Posterior of each answer where an annotator either knows it or answers from habit.

    Hovy et al. (2013), Learning Whom to Trust with MACE, NAACL, through crowd-kit. Slower than
    Dawid-Skene by an order of magnitude.

    Returns:
        As ``dawid_skene``.
    """
    return _fit(_crowdkit().MACE(n_restarts=2, random_state=0), table, num_comparisons)


MODELS: dict[str, Callable[[VoteTable, int], Floats]] = {
    "majority": majority,
    "dawid_skene": dawid_skene,
    "mace": mace,
}


def reliability(table: VoteTable, probabilities: Floats) -> dict[str, float]:
    """Probability that an annotator's answer is right: mean posterior of the answers given.

    Args:
        table: all votes.
        probabilities: [N, 3] of a, b and tie, from one of the models; by ``majority`` it is the
            mean share of the votes for their answer, their own included.
    """
    comparison, annotator, choice = table.columns()
    right = np.bincount(annotator, weights=probabilities[comparison, choice])
    means = right / np.maximum(np.bincount(annotator), 1)
    return dict(zip(table.names, means.tolist(), strict=False))


def decide(probabilities: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Who wins, given the posterior of the three answers.

        P(a beats b) = P(a) / (P(a) + P(b))

    Args:
        probabilities: [N, 3] of a, b and tie.

    Returns:
        [N] P(a beats b), one half where neither has any mass; and [N] True where the comparison
        is a tie: a and b are level, or a tie is more probable than either.
    """
    a, b, tie = probabilities.T
    decided = a + b
    beats = np.divide(a, decided, out=np.full_like(a, 0.5), where=decided > 0)
    return beats, (np.abs(a - b) < _LEVEL) | (tie > np.maximum(a, b))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _fit(model: Any, table: VoteTable, num_comparisons: int) -> Floats:
    comparison, annotator, choice = table.columns()
    probabilities = np.zeros((num_comparisons, len(CHOICES)))
    if not len(comparison):
        return probabilities
    unnamed = float(np.mean(annotator == table.names.get(UNNAMED, -1)))
    if unnamed > _MAX_UNNAMED_FRACTION:
        raise ConfigError(
            "data.votes.method: models of annotators weigh people by their record, and"
            f" {unnamed:.0%} of the votes name nobody; name the annotators, or use majority"
        )
    model.fit(pd.DataFrame({"task": comparison, "worker": annotator, "label": choice}))
    found = model.probas_.reindex(columns=range(len(CHOICES)), fill_value=0.0).fillna(0.0)
    probabilities[found.index.to_numpy()] = found.to_numpy()
    return probabilities


def _crowdkit() -> Any:
    try:
        import crowdkit.aggregation as aggregation
    except ImportError as error:
        raise ConfigError(
            "data.votes.method: models of annotators need crowd-kit;"
            " pip install 'rlhf-pipeline[annotators]', or use majority"
        ) from error
    return aggregation
