"""Files that were given twice: their votes of nobody in particular would count twice.

A vote with a name is known from its person. Votes without one are different people's within a file;
a file that repeats another line by line brings the same votes again.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from rlhf_core.dataprep.ledger import Ledger
from rlhf_core.dataprep.sources.rows import UNNAMED
from rlhf_core.dataprep.votes.vote_table import VoteTable
from rlhf_core.schema import Vote

logger = logging.getLogger(__name__)

Ballot = tuple[Vote, ...]
_Two = tuple[int, int]
"""Readings, the earlier one first."""
_MIN_ROWS = 20
"""Fewer rows say the same by chance, where other people agree on them."""


def rows_read_again(
    entries: Ledger,
    table: VoteTable,
    groups: Iterable[Iterable[int]],
    ballots: Mapping[int, Ballot],
) -> set[int]:
    """Return the rows with unnamed votes that a second reading of the same file brought.

    Two readings are of one file, or of one and what it had grown to, where all rows with unnamed
    votes of the shorter one, 20 at least, stand in the other too, on the same lines, with the same
    votes. Somebody else's votes on the same pairs differ somewhere, and all of them stay.

    Args:
        entries: all comparisons; those already filtered out take no part.
        table: their votes.
        groups: rows on one and the same pair.
        ballots: the votes of those rows, all with the same response as a.
    """
    reading = entries.readings()
    same: dict[_Two, set[int]] = defaultdict(set)
    other: set[_Two] = set()
    for group in groups:
        for one, two in _on_the_same_line(entries, group, ballots):
            between = int(reading[one]), int(reading[two])
            if between[0] == between[1]:
                continue
            if ballots[one] == ballots[two]:
                same[between].add(two)
            else:
                other.add(between)
    sizes = _with_unnamed_votes(entries, table, reading)
    again: set[int] = set()
    for between, rows in sorted(same.items()):
        shorter = min(sizes[part] for part in between)
        if between not in other and len(rows) == shorter >= _MIN_ROWS:
            first = entries[min(rows)]
            logger.warning(
                "read_again rows=%d first=%s; they say line by line what another file or reading"
                " says, without names of annotators, and count once; name the annotators where"
                " these are other people's votes",
                len(rows),
                first.place,
            )
            again |= rows
    return again


def _on_the_same_line(
    entries: Ledger, group: Iterable[int], ballots: Mapping[int, Ballot]
) -> list[_Two]:
    by_line: dict[int, list[int]] = defaultdict(list)
    for row in group:
        line = entries.line(row)
        if line and any(vote.annotator == UNNAMED for vote in ballots[row]):
            by_line[line].append(row)
    return [two for rows in by_line.values() for two in combinations(rows, 2)]


def _with_unnamed_votes(
    entries: Ledger, table: VoteTable, reading: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Counter[int]:
    """Count the rows of each reading that stay and have such votes."""
    unnamed = np.array(table.annotator, dtype=np.int64) == table.names.get(UNNAMED, -1)
    rows = np.unique(np.array(table.comparison, dtype=np.int64)[unnamed])
    return Counter(reading[rows[entries.have(None)[rows]]].tolist())
