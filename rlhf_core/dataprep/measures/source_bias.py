"""What the source of a row gives away: of the label, and of how long its responses are.

Both responses of a pair have one source, so it cannot say which of them is better; it can say which
side wins (a source that shows the better one first) and carry a habit of length into a mixture.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import unit_interval
from rlhf_core.dataprep.ledger import Entry
from rlhf_core.dataprep.measures.bias import first_win_estimate, length_win_estimate
from rlhf_core.schema import Estimate
from rlhf_core.statistics.clusters import MAX_ROWS, auc, bootstrap, numbered
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


def source_facts(entries: Sequence[Entry]) -> dict[str, SourceFacts]:
    """Return the facts of every source, by name."""
    by_source: dict[str, list[Entry]] = {}
    for entry in entries:
        by_source.setdefault(entry.source, []).append(entry)
    return {
        name: SourceFacts(
            num_pairs=len(rows),
            length_win=length_win_estimate(rows),
            first_win=first_win_estimate(rows),
            mean_chars=float(np.mean([row.num_chars for row in rows])),
        )
        for name, rows in sorted(by_source.items())
    }


def source_estimates(entries: Sequence[Entry], seed: int) -> dict[str, Estimate]:
    """Return what the source predicts, where there are two sources of ``MIN_PAIRS`` pairs.

    Returns:
        ``source_label_auc``: area under the curve of telling from a pair's source alone whether its
        first response wins, by the source's record on the other half of the dialogues; 0.5 where
        the source says nothing. ``source_length_share``: share of the variance of response length
        that the source explains (omega squared); 0 where it explains none.
    """
    counts = Counter(entry.source for entry in entries)
    names = sorted(name for name, count in counts.items() if count >= MIN_PAIRS)
    if len(names) < 2:
        return {}
    number = {name: place for place, name in enumerate(names)}
    rows = [entry for entry in entries if entry.source in number]
    source = np.array([number[row.source] for row in rows])
    won = np.array([row.a_beats_b > 0.5 for row in rows])
    half = np.array([unit_interval(seed, "source", row.dialogue) < 0.5 for row in rows])
    length = np.array([sum(row.num_chars) / 2 for row in rows])
    record = _record(source, won, half, len(names))
    some = np.random.default_rng(seed).permutation(len(rows))[:MAX_ROWS]
    source, won, length, record = source[some], won[some], length[some], record[some]
    dialogues = numbered(rows[place].dialogue for place in some)
    found = {}
    if 0 < won.sum() < len(won):
        found["source_label_auc"] = bootstrap(
            lambda drawn: auc(record[drawn], won[drawn]), dialogues, seed
        )
    found["source_length_share"] = bootstrap(
        lambda drawn: _omega_squared(length[drawn], source[drawn], len(names)), dialogues, seed
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
