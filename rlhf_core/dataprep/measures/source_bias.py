"""What the source of a row gives away: of the label, and of how long its responses are.

Both responses of a pair have one source, so it cannot say which of them is better; it can say which
side wins (a source that shows the better one first) and carry a habit of length into a mixture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import unit_interval
from rlhf_core.dataprep.ledger import Labelled
from rlhf_core.dataprep.measures.bias import first_win_estimate, length_win_estimate
from rlhf_core.schema import Estimate
from rlhf_core.statistics.clusters import MAX_ROWS, auc, bootstrap, numbered, ranked
from rlhf_core.statistics.resampling import Array, Ints

MIN_PAIRS = 50
"""Sources with fewer pairs are listed and not compared."""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """One source's pairs that stay."""

    num_pairs: int
    length_win: Estimate
    """Share that the longer response wins."""
    first_win: Estimate
    """Share that the first response shown wins."""
    mean_chars: float
    """Mean length of a response."""


def source_facts(pairs: Labelled) -> dict[str, SourceFacts]:
    """Return the facts of every source, by name."""
    parts = {
        pairs.sources[number]: pairs.only(pairs.source == number)
        for number in np.unique(pairs.source)
    }
    return {
        name: SourceFacts(
            num_pairs=len(part),
            length_win=length_win_estimate(part),
            first_win=first_win_estimate(part),
            mean_chars=float(np.mean(part.num_chars)),
        )
        for name, part in sorted(parts.items())
    }


def source_estimates(pairs: Labelled, seed: int) -> dict[str, Estimate]:
    """Return what the source predicts, where there are two sources of ``MIN_PAIRS`` pairs.

    Returns:
        ``source_label_auc``: area under the curve of telling from a pair's source alone whether its
        first response wins, by the source's record on the other half of the dialogues; 0.5 where
        the source says nothing. ``source_length_share``: share of the variance of response length
        that the source explains (omega squared); 0 where it explains none.
    """
    counts = np.bincount(pairs.source, minlength=len(pairs.sources))
    large = np.flatnonzero(counts >= MIN_PAIRS)
    if len(large) < 2:
        return {}
    rows = pairs.only(np.isin(pairs.source, large))
    number = np.zeros(len(pairs.sources), dtype=np.int64)
    number[sorted(large, key=pairs.sources.__getitem__)] = np.arange(len(large))
    source, won, length = number[rows.source], rows.a_won, rows.num_chars.sum(axis=1) / 2
    halves = np.array([unit_interval(seed, "source", key) < 0.5 for key in pairs.dialogues])
    record = _record(source, won, halves[rows.dialogue], len(large))
    some = np.random.default_rng(seed).permutation(len(rows))[:MAX_ROWS]
    source, won, length, record = source[some], won[some], length[some], record[some]
    dialogues = numbered(rows.dialogue[some].tolist())
    found = {}
    if 0 < won.sum() < len(won):
        ranks = ranked(record)
        found["source_label_auc"] = bootstrap(
            lambda drawn: auc(ranks[drawn], won[drawn]), dialogues, seed
        )
    found["source_length_share"] = bootstrap(
        lambda drawn: _omega_squared(length[drawn], source[drawn], len(large)), dialogues, seed
    )
    return found


def _record(source: Ints, won: NDArray[np.bool_], half: NDArray[np.bool_], size: int) -> Array:
    """How often a wins in a row's source, over the dialogues of the other half."""
    record = np.empty(len(source))
    for side in (True, False):
        other = half != side
        wins = np.bincount(source[other], weights=won[other], minlength=size)
        total = np.bincount(source[other], minlength=size)
        record[half == side] = ((wins + 1) / (total + 2))[source[half == side]]
    return record


def _omega_squared(values: Array, groups: Ints, size: int) -> float:
    """Share of variance between groups, freed of what chance alone puts there (Hays 1963).

    omega^2 = (SS_between - (k - 1) MS_within) / (SS_total + MS_within)
    """
    counts = np.bincount(groups, minlength=size)
    means = np.bincount(groups, weights=values, minlength=size) / np.maximum(counts, 1)
    total = float(((values - values.mean()) ** 2).sum())
    between = float((counts * (means - values.mean()) ** 2).sum())
    num_groups = int(np.count_nonzero(counts))
    if len(values) <= num_groups:
        return 0.0
    within = (total - between) / (len(values) - num_groups)
    share = (between - (num_groups - 1) * within) / max(total + within, 1e-12)
    return max(0.0, share)
