"""Each annotator's agreement with everybody else: Krippendorff's alpha of one against the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    owners, sums, num_shared = _sums(table, groups)
    found = np.full((3, size), np.nan)
    edges = np.searchsorted(owners, np.arange(size + 1))
    for person, (start, end) in enumerate(pairwise(edges)):
        if start < end:
            rows = sums[start:end]
            found[0, person] = alphas(rows.sum(axis=0, keepdims=True))[0]
            found[1:, person] = alpha_interval(
                rows, num_resamples=num_resamples, seed=seed, confidence=CONFIDENCE
            )
    return AgainstRest(found[0], found[1], found[2], num_shared)


def _sums(table: VoteTable, groups: Sequence[str]) -> tuple[Ints, Floats, Ints]:
    """Return what alpha is made of, of each annotator and each comparison or list.

    Returns:
        [G] annotator, in order; [G, 4] answers of both sides and what they disagree in; [A] votes
        that others share.
    """
    comparison, annotator, choice = table.columns()
    counts = table.counts(len(groups))
    use = counts.sum(axis=1)[comparison] > 1
    comparison, annotator, choice = comparison[use], annotator[use], choice[use]
    own = np.eye(len(CHOICES))[choice]
    others = counts[comparison] - own
    rest = others / others.sum(axis=1, keepdims=True)
    sums = np.column_stack((own + rest, 2 * (1 - (own * rest).sum(axis=1))))
    unit = units(groups)[comparison]
    # In an order of the content's own, so that sums do not depend on the order of the rows.
    order = np.lexsort((*sums.T, unit, annotator))
    annotator, unit, sums = annotator[order], unit[order], sums[order]
    is_first = np.diff(annotator, prepend=-1) | np.diff(unit, prepend=-1)
    starts = np.flatnonzero(is_first)
    num_shared = np.bincount(annotator, minlength=len(table.names))
    if not len(starts):
        return annotator, sums, num_shared
    return annotator[starts], np.add.reduceat(sums, starts, axis=0), num_shared
