"""The votes on comparisons as ballots: comparisons on which all was answered alike share one.

Ballots are in an order, and call sides by names, of what they say: neither the order of the rows
nor which response was called a decides anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.sources.rows import UNNAMED
from rlhf_core.dataprep.votes.vote_table import CHOICES, Floats, Ints, VoteTable

SHARED = 0
"""Number of the record that people with few votes have in common."""
OTHER_SIDE = np.array((1, 0, 2))
_VOTES_AT_ONCE = 1 << 16
Small = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ballots:
    """The votes, comparisons with equal ones as one ballot; ballots ordered by what they say."""

    edges: Ints
    """[U + 1] first vote of each ballot, and where the last one ends."""
    person: Small
    """[V] number of the record that a vote adds to."""
    answer: NDArray[np.int8]
    """[V] place in ``CHOICES``."""
    weight: Floats
    """[U] comparisons with these votes."""
    nobody_known: NDArray[np.bool_]
    """[U] whether all who voted have few votes."""
    of_comparison: Ints
    """[N] ballot of each comparison; -1 without votes."""
    is_swapped: NDArray[np.bool_]
    """[N] whether the ballot calls b what the comparison calls a."""
    num_people: int

    def parts(self) -> "Iterator[Part]":
        """Yield all ballots in their order, some thousand at a time."""
        start, num_ballots = 0, len(self.weight)
        while start < num_ballots:
            behind = self.edges[start] + _VOTES_AT_ONCE
            stop = max(start + 1, int(np.searchsorted(self.edges, behind, side="right")) - 1)
            votes = slice(self.edges[start], self.edges[stop])
            sizes = np.diff(self.edges[start : stop + 1])
            ballot = np.repeat(np.arange(stop - start), sizes)
            yield Part(
                ballots=slice(start, stop),
                ballot=ballot,
                person=self.person[votes].astype(np.int64),
                answer=self.answer[votes].astype(np.int64),
                weight=self.weight[start:stop][ballot],
                is_shared=sizes[ballot] > 1,
            )
            start = stop

    def shares(self) -> Floats:
        """Return [U, 3] shares of the answers."""
        counts = np.concatenate([part.counts() for part in self.parts()])
        counts /= counts.sum(axis=1, keepdims=True)
        return counts


@dataclass(frozen=True, slots=True)
class Part:
    """Some ballots, and their votes."""

    ballots: slice
    ballot: Ints
    """[v] of each vote, from 0 on."""
    person: Ints
    """[v]"""
    answer: Ints
    """[v]"""
    weight: Floats
    """[v] comparisons with the vote's ballot."""
    is_shared: NDArray[np.bool_]
    """[v] whether another vote stands on the ballot: one alone tells nothing of who gave it."""

    def by_ballot(self, amounts: Floats) -> Floats:
        """Sum [v, k] amounts over the votes of each ballot: [u, k]."""
        size = self.ballots.stop - self.ballots.start
        return np.column_stack(
            [np.bincount(self.ballot, weights=column, minlength=size) for column in amounts.T]
        ).astype(np.float64)

    def add_by_person(self, amounts: Floats, sums: Floats) -> None:
        """Add [v] amounts of shared votes to ``sums`` [P] of people, vote after vote.

        Parts change no bit.
        """
        np.add.at(sums, self.person, amounts * self.weight * self.is_shared)

    def counts(self) -> Floats:
        """[u, 3] votes for each answer."""
        return self.by_ballot(np.eye(len(CHOICES))[self.answer])


def ballots_of(table: VoteTable, num_comparisons: int, min_votes: int) -> Ballots:
    """Return the ballots of all comparisons that have votes.

    Args:
        table: the votes.
        num_comparisons: all of them, those without votes as well.
        min_votes: people with fewer shared votes share one record.
    """
    ranks = {name: rank for rank, name in enumerate(sorted(table.names))}
    rank_of = np.array([ranks[name] for name in table.names], dtype=np.int32)
    comparison, annotator, choice = table.columns()
    rank = rank_of[annotator]
    is_few = np.zeros(len(ranks), dtype=np.bool_)
    is_few[rank_of] = have_few_votes(table, min_votes)
    sizes = np.bincount(comparison, minlength=num_comparisons)
    codes, is_swapped = _codes(comparison, rank, choice, num_comparisons)
    voted = np.flatnonzero(sizes)
    first_vote = np.cumsum(sizes) - sizes
    place = _places(codes, first_vote[voted], sizes[voted])
    _, example, number, weight = np.unique(
        place, return_index=True, return_inverse=True, return_counts=True
    )
    of_comparison = np.full(num_comparisons, -1, dtype=np.int64)
    of_comparison[voted] = number
    example = voted[example]
    edges = np.append(0, np.cumsum(sizes[example]))
    votes = np.repeat(first_vote[example] - edges[:-1], sizes[example]) + np.arange(edges[-1])
    person, answer = np.divmod(codes[votes], len(CHOICES))
    return Ballots(
        edges=edges,
        person=np.where(is_few[person], SHARED, person + 1).astype(np.int32),
        answer=answer.astype(np.int8),
        weight=weight.astype(np.float64),
        nobody_known=np.logical_and.reduceat(is_few[person], edges[:-1]),
        of_comparison=of_comparison,
        is_swapped=is_swapped,
        num_people=len(ranks) + 1,
    )


def have_few_votes(table: VoteTable, min_votes: int) -> NDArray[np.bool_]:
    """[A] whose record is not their own, by their number: they have no name, or few shared votes.

    Shared are those on comparisons with another vote.
    """
    comparison, annotator, _ = table.columns()
    shared = annotator[np.bincount(comparison)[comparison] > 1]
    is_few: NDArray[np.bool_] = np.bincount(shared, minlength=len(table.names)) < min_votes
    if UNNAMED in table.names:
        is_few[table.names[UNNAMED]] = True
    return is_few


def _codes(
    comparison: Ints, rank: Small, choice: Ints, num_comparisons: int
) -> tuple[Small, NDArray[np.bool_]]:
    """Write each vote as a number, comparison by comparison, each one's in order.

    With sides as they are called or the other way round, whichever comes first.

    Returns:
        [V] the numbers, and [N] whether they are the other way round.
    """
    as_given = rank * len(CHOICES) + choice.astype(np.int32)
    other_way = rank * len(CHOICES) + OTHER_SIDE[choice].astype(np.int32)
    as_given = as_given[np.lexsort((as_given, comparison))]
    order = np.lexsort((other_way, comparison))
    other_way, comparison = other_way[order], comparison[order]
    differ = np.flatnonzero(as_given != other_way)
    first = differ[np.flatnonzero(np.diff(comparison[differ], prepend=-1))]
    is_swapped = np.zeros(num_comparisons, dtype=np.bool_)
    is_swapped[comparison[first]] = other_way[first] < as_given[first]
    return np.where(is_swapped[comparison], other_way, as_given), is_swapped


def _places(codes: Small, first: Ints, sizes: Ints) -> Ints:
    """[N] place of each row in the order of rows by what stands in them, equal for equal rows.

    A row is ``codes[first : first + size]``; one that another begins with comes before it. Rows
    that begin alike are told apart by one number after the other.
    """
    place = np.zeros(len(first), dtype=np.int64)
    open_rows, at = np.arange(len(first)), 0
    while len(open_rows):
        has_more = sizes[open_rows] > at
        code = np.full(len(open_rows), -1, dtype=np.int32)
        code[has_more] = codes[first[open_rows[has_more]] + at]
        order = np.lexsort((code, place[open_rows]))
        rows, code = open_rows[order], code[order]
        known = place[rows]
        begins = np.diff(known, prepend=-1) != 0
        differs = begins | (np.diff(code, prepend=-2) != 0)
        number = np.arange(len(rows))
        begin_of = np.maximum.accumulate(np.where(begins, number, 0))
        place_of = np.maximum.accumulate(np.where(differs, number, 0))
        place[rows] = known + place_of - begin_of
        is_alone = differs & np.append(differs[1:], True)
        open_rows, at = rows[~is_alone & (code >= 0)], at + 1
    return place
