"""The models that turn votes into preferences: majority votes, or people weighed by their record.

Neither the order of rows nor which response was called a changes a bit of what they say:
comparisons with equal votes are counted as one, in an order and with sides of the votes' own. For
the same reason no model knows a habit of one side, only of ties.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.sources.rows import UNNAMED
from rlhf_core.dataprep.votes.ballots import (
    OTHER_SIDE,
    Ballots,
    ballots_of,
    have_few_votes,
)
from rlhf_core.dataprep.votes.vote_table import CHOICES, Floats, Ints, VoteTable, decide
from rlhf_core.errors import ConfigError

logger = logging.getLogger(__name__)

_MAX_UNNAMED_FRACTION = 0.5
"""Where more votes name nobody, models of annotators would be majority votes under another name."""
_PRIOR_VOTES = 20.0
"""A person's record begins as so many votes of everybody's mean."""
_MAX_STEPS = 500
_CONVERGED = 1e-7
_RARE = 1e-9
"""What no vote says is not impossible, but has no say either."""
_TIE = CHOICES.index("tie")


class VoteModel(Protocol):
    """Says how probable each answer is: [N, 3] of a, b and tie, zeros without votes."""

    def __call__(self, table: VoteTable, num_comparisons: int, *, min_votes: int) -> Floats:
        """Weigh the votes; people with fewer than ``min_votes`` shared ones have one record."""


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
    model calls a tie whatever people disagree about. Records are learned from comparisons with
    several votes: a vote that nobody can agree with or not makes any record as likely as any other.
    Where nobody who voted has ``min_votes`` such votes, the majority vote decides who wins, and the
    model says how surely.
    """
    return _fit(table, num_comparisons, min_votes, _Confusion)


def mace(table: VoteTable, num_comparisons: int, *, min_votes: int) -> Floats:
    """Posterior of each answer where an annotator either knows it or answers from habit.

    Hovy et al. (2013), Learning Whom to Trust with MACE, NAACL, with both sides alike:

        P(v | t) = k [v = t] + (1 - k) g(v),  g(tie) = h,  g(a) = g(b) = (1 - h) / 2

    with k and h of each person, and all else as for ``dawid_skene``.
    """
    return _fit(table, num_comparisons, min_votes, _Knowledge)


MODELS: dict[str, VoteModel] = {"majority": majority, "dawid_skene": dawid_skene, "mace": mace}


def decided_by_majority(table: VoteTable, num_comparisons: int, min_votes: int) -> int:
    """Return on how many comparisons nobody voted who has a record of their own."""
    comparison, annotator, _ = table.columns()
    is_few = have_few_votes(table, min_votes)[annotator]
    num_votes = np.bincount(comparison, minlength=num_comparisons)
    num_of_few = np.bincount(comparison[is_few], minlength=num_comparisons)
    return int(np.count_nonzero((num_votes > 0) & (num_of_few == num_votes)))


class Annotators(Protocol):
    """What a model knows of people."""

    def learn(self, ballots: Ballots, posterior: Floats) -> None:
        """Take from the votes, and [U, 3] the probability of each truth, what people are like."""

    def likelihood(self, person: Ints, answer: Ints) -> Floats:
        """[v, 3] probability of each vote given truth a, b and tie."""


def _fit(
    table: VoteTable, num_comparisons: int, min_votes: int, model: Callable[[Ballots], Annotators]
) -> Floats:
    """Expectation-maximisation from the shares of the votes."""
    probabilities = np.zeros((num_comparisons, len(CHOICES)))
    if not len(table.comparison):
        return probabilities
    _require_names(table)
    _require_shared(table)
    ballots = ballots_of(table, num_comparisons, min_votes)
    posterior = ballots.shares()
    annotators, tie = model(ballots), np.clip(tie_share(ballots), _RARE, 1 - _RARE)
    prior = np.log([(1 - tie) / 2, (1 - tie) / 2, tie])
    for _ in range(_MAX_STEPS):
        annotators.learn(ballots, posterior)
        change = _update(posterior, ballots, annotators, prior)
        if change < _CONVERGED:
            break
    else:
        logger.warning(
            "votes_unsettled: after %d steps the probability of a winner still changes by %.1g;"
            " they are taken as they are",
            _MAX_STEPS,
            change,
        )
    _majority_decides(posterior, ballots.shares(), ballots.nobody_known)
    has_votes = ballots.of_comparison >= 0
    probabilities[has_votes] = posterior[ballots.of_comparison[has_votes]]
    swapped = probabilities[ballots.is_swapped]
    probabilities[ballots.is_swapped] = swapped[:, OTHER_SIDE]
    return probabilities


def _update(posterior: Floats, ballots: Ballots, annotators: Annotators, prior: Floats) -> float:
    """Bayes' rule for each ballot, in place; return the largest change."""
    change = 0.0
    # Some thousand people and three answers: far fewer than votes.
    log_of = np.log(annotators.likelihood(*every_vote(ballots.num_people)))
    for part in ballots.parts():
        logs = part.by_ballot(log_of[part.person * len(CHOICES) + part.answer]) + prior
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        change = max(change, float(np.abs(odds - posterior[part.ballots]).max()))
        posterior[part.ballots] = odds
    return change


def every_vote(num_people: int) -> tuple[Ints, Ints]:
    """Return [3 P] person and answer of each vote that there can be, person by person."""
    answers = len(CHOICES)
    return np.repeat(np.arange(num_people), answers), np.tile(np.arange(answers), num_people)


def tie_share(ballots: Ballots) -> float:
    """Return the share of ties among all votes."""
    counts = np.zeros(2)
    for part in ballots.parts():
        counts += [part.weight.sum(), part.weight[part.answer == _TIE].sum()]
    return float(counts[1] / counts[0])


class _Confusion:
    """Dawid & Skene: how right each person is, and how they use ties."""

    def __init__(self, ballots: Ballots) -> None:
        self._size = ballots.num_people

    def learn(self, ballots: Ballots, posterior: Floats) -> None:
        sums = np.zeros((5, self._size))
        for part in ballots.parts():
            truth, is_tie = posterior[part.ballots][part.ballot], part.answer == _TIE
            votes, side = np.arange(len(is_tie)), np.minimum(part.answer, 1)
            # How often each vote is to be expected of its kind: by the posterior of what is true.
            amounts = (
                ~is_tie * truth[votes, side],  # said the side that is better
                ~is_tie * truth[votes, 1 - side],  # said the other side
                is_tie * (truth[:, 0] + truth[:, 1]),  # called a tie where a side is better
                is_tie * truth[:, _TIE],
                ~is_tie * truth[:, _TIE],
            )
            for of_person, amount in zip(sums, amounts, strict=True):
                part.add_by_person(amount, of_person)
        right, wrong, tie_of_side, tie_of_tie, side_of_tie = sums
        self._right = _smoothed(right, wrong)
        self._tie_of_side = _smoothed(tie_of_side, right + wrong)
        self._tie_of_tie = _smoothed(tie_of_tie, side_of_tie)

    def likelihood(self, person: Ints, answer: Ints) -> Floats:
        r, h, s = (
            of_person[person] for of_person in (self._right, self._tie_of_side, self._tie_of_tie)
        )
        is_tie, same, other = answer == _TIE, (1 - h) * r, (1 - h) * (1 - r)
        given_a = np.where(answer == 0, same, other)
        given_b = np.where(answer == 1, same, other)
        decided = [np.where(is_tie, h, column) for column in (given_a, given_b)]
        return np.column_stack((*decided, np.where(is_tie, s, (1 - s) / 2)))


class _Knowledge:
    """MACE: how often each person knows, and how often they call a tie where they do not."""

    def __init__(self, ballots: Ballots) -> None:
        self._knows = np.full(ballots.num_people, 0.5)
        self._habit = np.full(ballots.num_people, tie_share(ballots))

    def learn(self, ballots: Ballots, posterior: Floats) -> None:
        sums = np.zeros((4, ballots.num_people))
        for part in ballots.parts():
            guess, k = self._guess(part.person, part.answer)
            is_tie, right = part.answer == _TIE, posterior[part.ballots][part.ballot]
            # Who said what is true knew it or guessed it; who said anything else guessed.
            right = right[np.arange(len(is_tie)), part.answer]
            known = right * k / (k + guess)
            amounts = (known, 1 - known, (1 - known) * is_tie, (1 - known) * ~is_tie)
            for of_person, amount in zip(sums, amounts, strict=True):
                part.add_by_person(amount, of_person)
        self._knows = _smoothed(sums[0], sums[1])
        self._habit = _smoothed(sums[2], sums[3])

    def likelihood(self, person: Ints, answer: Ints) -> Floats:
        guess, k = self._guess(person, answer)
        found: Floats = guess[:, None] + k[:, None] * np.eye(len(CHOICES))[answer]
        return found

    def _guess(self, person: Ints, answer: Ints) -> tuple[Floats, Floats]:
        """[v] how probable each vote is of somebody who does not know, and [v] that they know."""
        k, h = self._knows[person], self._habit[person]
        return (1 - k) * np.where(answer == _TIE, h, (1 - h) / 2), k


def _smoothed(hits: Floats, misses: Floats) -> Floats:
    """[P] share of hits of each person, drawn towards everybody's, itself never 0 or 1."""
    everybody = (hits.sum() + 1) / (hits.sum() + misses.sum() + 2)
    share: Floats = (hits + _PRIOR_VOTES * everybody) / (hits + misses + _PRIOR_VOTES)
    return share


def _majority_decides(posterior: Floats, shares: Floats, where: NDArray[np.bool_]) -> None:
    """Take the shares of the votes where the model would have another win than the majority."""
    (beats, tied), (beats_by_majority, tied_by_majority) = decide(posterior), decide(shares)
    same_side = np.sign(beats - 0.5) == np.sign(beats_by_majority - 0.5)
    is_same = (tied == tied_by_majority) & (tied | same_side)
    taken = where & ~is_same
    posterior[taken] = shares[taken]


def _require_names(table: VoteTable) -> None:
    _, annotator, _ = table.columns()
    unnamed = float(np.mean(annotator == table.names.get(UNNAMED, -1)))
    if unnamed > _MAX_UNNAMED_FRACTION:
        raise ConfigError(
            "data.votes.method: models of annotators weigh people by their record, and"
            f" {unnamed:.0%} of the votes name nobody; name the annotators, or use majority"
        )


def _require_shared(table: VoteTable) -> None:
    comparison, _, _ = table.columns()
    if np.bincount(comparison).max() < 2:
        raise ConfigError(
            "data.votes.method: models of annotators learn who is right from comparisons with"
            " several votes, and here each has one; use majority"
        )
