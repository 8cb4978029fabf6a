"""Each annotator's agreement with everybody else: Krippendorff's alpha of one against the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_core.dataprep.votes.agreement import alpha_interval, alphas, units
from rlhf_core.dataprep.votes.vote_table import CHOICES, Floats, Ints, VoteTable

CONFIDENCE = 0.98
"""Two-sided: each bound alone is a test at one in a hundred."""


@dataclass(frozen=True, slots=True)
class AgainstRest:
    """One entry an annotator, in the order of ``VoteTable.names``; NaN where not defined."""

    alpha: Floats
    low: Floats
    high: Floats
    """Bounds of the 98% interval."""
    num_shared: Ints
    """Votes on comparisons that someone else voted on as well."""


def against_rest(
    table: VoteTable, groups: Sequence[str], *, num_resamples: int, seed: int
) -> AgainstRest:
    """Return alpha between each annotator and the others, over what both voted on.

    The others are one observer who gives each answer the share of their votes. With one other
    person on every comparison that is alpha between the two, see ``agreement.alphas``.

    Args:
        table: all votes.
        groups: [N] ranked list of each comparison, drawn as a whole; an empty name stands alone.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
    """
    size = len(table.names)
    comparison, annotator, choice = table.columns()
    counts = table.counts(len(groups))
    shared = np.flatnonzero(counts.sum(axis=1)[comparison] > 1)
    shared = shared[np.argsort(annotator[shared], kind="stable")]
    num_shared = np.bincount(annotator[shared], minlength=size)
    unit = units(groups)
    found = np.full((3, size), np.nan)
    for person, votes in enumerate(np.split(shared, np.cumsum(num_shared)[:-1])):
        if len(votes):
            of_votes = comparison[votes]
            sums = _sums(counts[of_votes], choice[votes], unit[of_votes])
            found[0, person] = alphas(sums.sum(axis=0, keepdims=True))[0]
            found[1:, person] = alpha_interval(
                sums, num_resamples=num_resamples, seed=seed, confidence=CONFIDENCE
            )
    return AgainstRest(found[0], found[1], found[2], num_shared)


def _sums(counts: Ints, choice: Ints, unit: Ints) -> Floats:
    """Return what one annotator's alpha is made of, of each comparison or list.

    Args:
        counts: [V, 3] all answers to what each vote of theirs is about.
        choice: [V] their answer.
        unit: [V] comparison or list.

    Returns:
        [G, 4] answers of both sides and what they disagree in.
    """
    own = np.eye(len(CHOICES))[choice]
    others = counts - own
    rest = others / others.sum(axis=1, keepdims=True)
    sums = np.column_stack((own + rest, 2 * (1 - (own * rest).sum(axis=1))))
    # In an order of the content's own, so that sums do not depend on the order of the rows.
    order = np.lexsort((*sums.T, unit))
    sums, unit = sums[order], unit[order]
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    added: Floats = np.add.reduceat(sums, starts, axis=0)
    return added
