"""The models that turn votes into preferences: heads counted, or people weighed by their record.

Neither the order of rows nor which response was called a changes a bit of what they say:
comparisons with equal votes are counted as one, in an order and with sides of the votes' own. For
the same reason no model knows a habit of one side, only of ties.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.sources.rows import UNNAMED
from rlhf_core.dataprep.votes.vote_table import CHOICES, Floats, Ints, VoteTable, decide
from rlhf_core.errors import ConfigError

_MAX_UNNAMED_FRACTION = 0.5
"""Where more votes name nobody, models of annotators would count heads under another name."""
_PRIOR_VOTES = 20.0
"""A person's record begins as so many votes of everybody's mean."""
_MAX_STEPS = 500
_CONVERGED = 1e-7
_RARE = 1e-9
"""What no vote says is not impossible, but has no say either."""
_SHARED = 0
"""Number of the record that people with few votes have in common."""
_TIE = CHOICES.index("tie")
_OTHER_SIDE = np.array((1, 0, 2))
_CODE = np.dtype(">u4")
"""Of a vote, the person and the answer: as bytes, whose order is that of the numbers."""


class VoteModel(Protocol):
    """Says how probable each answer is: [N, 3] of a, b and tie, zeros without votes."""

    def __call__(self, table: VoteTable, num_comparisons: int, *, min_votes: int) -> Floats:
        """Weigh the votes; people with fewer than ``min_votes`` of them share one record."""


def majority(table: VoteTable, num_comparisons: int, *, min_votes: int = 1) -> Floats:
    """Share of the votes for each answer, whoever gave them."""
    del min_votes
    counts = table.counts(num_comparisons)
    shares: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def dawid_skene(table: VoteTable, num_comparisons: int, *, min_votes: int) -> Floats:
    """Posterior of each answer where every annotator has a confusion matrix, fitted with EM.

    Dawid & Skene (1979), Applied Statistics 28(1), with both sides alike:

        P(a | a) = P(b | b) = (1 - h) r     P(b | a) = P(a | b) = (1 - h) (1 - r)
        P(tie | a) = P(tie | b) = h         P(tie | tie) = s,  P(a | tie) = P(b | tie) = (1 - s) / 2

    for P(vote | truth), with r, h and s of each person drawn towards everybody's (a beta prior as
    strong as twenty votes). A tie is taken to be as frequent as among the votes: left free, the
    model calls a tie whatever people disagree about. Where nobody who voted has ``min_votes``
    votes, heads decide who wins, and the model says how surely.
    """
    return _fit(table, num_comparisons, min_votes, _confusion)


def mace(table: VoteTable, num_comparisons: int, *, min_votes: int) -> Floats:
    """Posterior of each answer where an annotator either knows it or answers from habit.

    Hovy et al. (2013), Learning Whom to Trust with MACE, NAACL, with both sides alike:

        P(v | t) = k [v = t] + (1 - k) g(v),  g(tie) = h,  g(a) = g(b) = (1 - h) / 2

    with k and h of each person, and all else as for ``dawid_skene``.
    """
    return _fit(table, num_comparisons, min_votes, _knowledge)


MODELS: dict[str, VoteModel] = {"majority": majority, "dawid_skene": dawid_skene, "mace": mace}


def decided_by_heads(table: VoteTable, num_comparisons: int, min_votes: int) -> int:
    """Return on how many comparisons nobody voted who has a record of their own."""
    ballots = _ballots(table, num_comparisons, min_votes)
    return int(ballots.weight[ballots.nobody_known].sum())


@dataclass(frozen=True, slots=True)
class _Ballots:
    """The votes, comparisons with equal ones as one ballot; ballots ordered by what they say."""

    ballot: Ints
    """[V] of each vote."""
    person: Ints
    """[V] number of the record that a vote adds to."""
    answer: Ints
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

    def by_person(self, amounts: Floats) -> Floats:
        """Sum [V] amounts over each person's votes."""
        weights = amounts * self.weight[self.ballot]
        return _sums(self.person, weights, self.num_people)

    def by_ballot(self, amounts: Floats) -> Floats:
        """Sum [V, 3] amounts over the votes of each ballot: [U, 3]."""
        size = len(self.weight)
        return np.column_stack([_sums(self.ballot, column, size) for column in amounts.T])

    def shares(self) -> Floats:
        """Return [U, 3] shares of the answers."""
        counts = self.by_ballot(np.eye(len(CHOICES))[self.answer])
        shares: Floats = counts / counts.sum(axis=1, keepdims=True)
        return shares


Step = Callable[[_Ballots, Floats, tuple[Floats, ...]], tuple[Floats, tuple[Floats, ...]]]
"""From the votes, [U, 3] the posterior and what the last step left, the [V, 3] probability of each
vote given truth a, b and tie, and what the next step needs."""


def _ballots(table: VoteTable, num_comparisons: int, min_votes: int) -> _Ballots:
    comparison, annotator, choice = table.columns()
    ranks = {name: rank for rank, name in enumerate(sorted(table.names))}
    rank = np.array([ranks[name] for name in table.names], dtype=np.int64)[annotator]
    starts = np.concatenate(([0], np.cumsum(np.bincount(comparison, minlength=num_comparisons))))
    as_given = _written(comparison, rank, choice)
    other_way = _written(comparison, rank, _OTHER_SIDE[choice])
    numbers: dict[bytes, int] = {}
    of_comparison = np.full(num_comparisons, -1, dtype=np.int64)
    is_swapped = np.zeros(num_comparisons, dtype=bool)
    for number, (start, end) in enumerate(pairwise((starts * _CODE.itemsize).tolist())):
        if start < end:
            as_is, other = as_given[start:end], other_way[start:end]
            is_swapped[number] = other < as_is
            of_comparison[number] = numbers.setdefault(min(as_is, other), len(numbers))
    contents = sorted(numbers)
    rank_of = np.argsort([numbers[content] for content in contents])
    voted = of_comparison >= 0
    of_comparison[voted] = rank_of[of_comparison[voted]]
    flat = np.frombuffer(b"".join(contents), dtype=_CODE).astype(np.int64)
    person, answer = np.divmod(flat, len(CHOICES))
    sizes = [len(content) // _CODE.itemsize for content in contents]
    ballot = np.repeat(np.arange(len(contents)), sizes)
    is_few = np.bincount(rank, minlength=len(ranks)) < min_votes
    if UNNAMED in ranks:
        is_few[ranks[UNNAMED]] = True
    known = np.bincount(ballot, weights=~is_few[person], minlength=len(contents))
    return _Ballots(
        ballot=ballot,
        person=np.where(is_few[person], _SHARED, person + 1),
        answer=answer,
        weight=np.bincount(of_comparison[voted], minlength=len(contents)).astype(np.float64),
        nobody_known=known == 0,
        of_comparison=of_comparison,
        is_swapped=is_swapped,
        num_people=len(ranks) + 1,
    )


def _written(comparison: Ints, rank: Ints, choice: Ints) -> bytes:
    """All votes, comparison by comparison, each one's in order, as bytes that sort as votes do."""
    codes = rank * len(CHOICES) + choice
    return codes[np.lexsort((codes, comparison))].astype(_CODE).tobytes()


def _fit(table: VoteTable, num_comparisons: int, min_votes: int, step: Step) -> Floats:
    """Expectation-maximisation from the shares of the votes."""
    probabilities = np.zeros((num_comparisons, len(CHOICES)))
    if not len(table.comparison):
        return probabilities
    _require_names(table)
    ballots = _ballots(table, num_comparisons, min_votes)
    posterior = shares = ballots.shares()
    share = (ballots.by_ballot(np.eye(len(CHOICES))[ballots.answer]).T @ ballots.weight)[_TIE]
    tie = np.clip(share / ballots.by_person(np.ones(len(ballots.answer))).sum(), _RARE, 1 - _RARE)
    prior = np.log([(1 - tie) / 2, (1 - tie) / 2, tie])
    state: tuple[Floats, ...] = ()
    for _ in range(_MAX_STEPS):
        likelihood, state = step(ballots, posterior, state)
        logs = ballots.by_ballot(np.log(likelihood, out=likelihood)) + prior
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        before, posterior = posterior, odds / odds.sum(axis=1, keepdims=True)
        if np.abs(posterior - before).max() < _CONVERGED:
            break
    posterior = _heads_decide(posterior, shares, ballots.nobody_known)
    has_votes = ballots.of_comparison >= 0
    probabilities[has_votes] = posterior[ballots.of_comparison[has_votes]]
    swapped = probabilities[ballots.is_swapped]
    probabilities[ballots.is_swapped] = swapped[:, _OTHER_SIDE]
    return probabilities


def _confusion(
    ballots: _Ballots, posterior: Floats, _: tuple[Floats, ...]
) -> tuple[Floats, tuple[Floats, ...]]:
    """Dawid & Skene's step: how right each person is, and how they use ties."""
    truth, is_tie = posterior[ballots.ballot], ballots.answer == _TIE
    votes = np.arange(len(is_tie))
    side = np.minimum(ballots.answer, 1)
    sides = ~is_tie[:, None] * np.column_stack((truth[votes, side], truth[votes, 1 - side]))
    right, wrong = (ballots.by_person(column) for column in sides.T)
    tie_of_side = ballots.by_person(is_tie * (truth[:, 0] + truth[:, 1]))
    tie_of_tie = ballots.by_person(is_tie * truth[:, _TIE])
    side_of_tie = ballots.by_person(~is_tie * truth[:, _TIE])
    r = _smoothed(right, wrong)[ballots.person]
    h = _smoothed(tie_of_side, right + wrong)[ballots.person]
    s = _smoothed(tie_of_tie, side_of_tie)[ballots.person]
    same, other = (1 - h) * r, (1 - h) * (1 - r)
    given = (np.where(ballots.answer == 0, same, other), np.where(ballots.answer == 1, same, other))
    decided = [np.where(is_tie, h, column) for column in given]
    return np.column_stack((*decided, np.where(is_tie, s, (1 - s) / 2))), ()


def _knowledge(
    ballots: _Ballots, posterior: Floats, state: tuple[Floats, ...]
) -> tuple[Floats, tuple[Floats, ...]]:
    """MACE's step: how often each person knows, and how often they call a tie where they do not."""
    is_tie, everyone = ballots.answer == _TIE, np.ones(len(ballots.answer))
    share = ballots.by_person(is_tie * 1.0).sum() / ballots.by_person(everyone).sum()
    knows, habit = state or (np.full(ballots.num_people, part) for part in (0.5, share))
    k, h = knows[ballots.person], habit[ballots.person]
    guess = (1 - k) * np.where(is_tie, h, (1 - h) / 2)
    right = posterior[ballots.ballot, ballots.answer]
    known = right * k / (k + guess)
    knows = _smoothed(ballots.by_person(known), ballots.by_person(1 - known))
    guessed = [ballots.by_person((1 - known) * which) for which in (is_tie, ~is_tie)]
    habit = _smoothed(guessed[0], guessed[1])
    k, h = knows[ballots.person], habit[ballots.person]
    guess = (1 - k) * np.where(is_tie, h, (1 - h) / 2)
    return guess[:, None] + k[:, None] * np.eye(len(CHOICES))[ballots.answer], (knows, habit)


def _sums(numbers: Ints, amounts: Floats, size: int) -> Floats:
    return np.bincount(numbers, weights=amounts, minlength=size).astype(np.float64)


def _smoothed(hits: Floats, misses: Floats) -> Floats:
    """[P] share of hits of each person, drawn towards everybody's, itself never 0 or 1."""
    everybody = (hits.sum() + 1) / (hits.sum() + misses.sum() + 2)
    share: Floats = (hits + _PRIOR_VOTES * everybody) / (hits + misses + _PRIOR_VOTES)
    return share


def _heads_decide(posterior: Floats, shares: Floats, where: NDArray[np.bool_]) -> Floats:
    """Take the shares of the votes where the model would have another win than heads."""
    (beats, tied), (beats_by_heads, tied_by_heads) = decide(posterior), decide(shares)
    is_same = (tied == tied_by_heads) & (tied | ((beats > 0.5) == (beats_by_heads > 0.5)))
    return np.where((where & ~is_same)[:, None], shares, posterior)


def _require_names(table: VoteTable) -> None:
    _, annotator, _ = table.columns()
    unnamed = float(np.mean(annotator == table.names.get(UNNAMED, -1)))
    if unnamed > _MAX_UNNAMED_FRACTION:
        raise ConfigError(
            "data.votes.method: models of annotators weigh people by their record, and"
            f" {unnamed:.0%} of the votes name nobody; name the annotators, or use majority"
        )
