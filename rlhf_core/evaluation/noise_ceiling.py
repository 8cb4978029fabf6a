"""How often a judge that knows the annotators' preference exactly would agree with their label.

A label is what a few people said on one day: asked again, others would say otherwise. What they
disagree about among themselves, no judge can be right about.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.special import betainc, betaln, gammaln

from rlhf_core.schema import Estimate, PreferencePair
from rlhf_core.statistics.intervals import SHARE, Resampling, bca_interval
from rlhf_core.statistics.resampling import Array, Ints

MIN_VOTES = 3
"""Two people who agree say nothing of how often people do: pairs on which they do not are ties."""
_STRENGTHS = np.geomspace(0.02, 200.0, 400)
"""Strengths tried, 2.3% apart: the ceiling changes by less than 0.003 from one to the next."""


def noise_ceiling(
    pairs: Sequence[PreferencePair], clusters: Ints, plan: Resampling
) -> Estimate | None:
    """Accuracy of a judge that prefers what most of many such annotators would, from the votes.

        q_i ~ Beta(s, s)               share of all annotators who prefer the first answer of pair i
        w_i ~ Binomial(m_i, q_i)       votes for it among the m_i that name one, no tie
        ceiling = mean_i P(q_i > 1/2 | votes), of the answer that the pair calls chosen

    with s by maximum likelihood, given that the votes are no tie (tied comparisons make no pair),
    and either answer may be the first. The beta-binomial model of repeated judgements: Skellam
    (1948), J. R. Stat. Soc. B 10(2). Annotators are taken to be drawn at random; where a vote model
    weighs them, their number counts here all the same.

    Value and interval are right where the shares q_i are spread nearly so. Few votes do not tell
    other shapes from it: of pairs of which half are obvious (98%) and half a toss-up (45% to 55%),
    with three votes, the label is what most prefer in 0.77, and this says 0.86. The interval is
    about the draw of pairs and knows nothing of that.

    Args:
        pairs: held-out pairs.
        clusters: [n] pairs of one dialogue share a number.
        plan: level, resamples, seed.

    Returns:
        None where no pair has three votes that name an answer: what one or two people say without
        being contradicted does not tell how often people would be.
    """
    won, named = _votes(pairs)
    if named.max(initial=0) < MIN_VOTES:
        return None
    kinds, kind = np.unique(np.stack([won, named], axis=-1), axis=0, return_inverse=True)
    _, dialogue = np.unique(clusters, return_inverse=True)
    counts = np.zeros((dialogue.max() + 1, len(kinds)))
    np.add.at(counts, (dialogue, kind.ravel()), 1.0)
    ceiling = partial(_ceiling, likelihoods=_likelihoods(kinds), right=_right(kinds))
    # Dialogues with equal votes are one row drawn more often, so memory does not grow with them.
    rows, often = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(plan.seed).multinomial(
        often.sum(), often / often.sum(), size=plan.num_resamples
    )
    total = counts.sum(axis=0)
    if len(counts) == 1:
        value = float(ceiling(total))
        return Estimate(value=value, low=0.0, high=1.0, num_samples=1, confidence=plan.level)
    left_out = np.repeat(ceiling(total - rows), often)
    value, resamples = float(ceiling(total)), ceiling(drawn @ rows)
    return bca_interval(value, resamples, left_out, plan.by(clusters), SHARE)


def _votes(pairs: Sequence[PreferencePair]) -> tuple[Array, Array]:
    """Votes for the chosen answer, and votes that name one: [n] each."""
    votes = np.array([pair.num_votes for pair in pairs], dtype=np.float64)
    ties = np.round(np.array([pair.tie_fraction for pair in pairs]) * votes)
    shares = np.array([pair.agreement for pair in pairs], dtype=np.float64)
    return np.clip(np.round(shares * votes - ties / 2), 0.0, votes - ties), votes - ties


def _likelihoods(kinds: Array) -> Array:
    """Log-likelihood of each kind of votes at each strength, given no tie: [kinds, strengths].

    Votes that are a tie, which a vote model decided, say nothing here.
    """
    won, named = kinds[:, :1], kinds[:, 1:]
    lost, s = named - won, _STRENGTHS[None, :]
    either = np.logaddexp(betaln(won + s, lost + s), betaln(lost + s, won + s)) - betaln(s, s)
    half = named / 2
    orders = gammaln(named + 1) - 2 * gammaln(half + 1)
    tied = np.exp(orders + betaln(half + s, half + s) - betaln(s, s))
    may_tie = (named % 2 == 0) & (won != lost)
    return np.asarray(np.where(won == lost, 0.0, either - np.log1p(-np.where(may_tie, tied, 0.0))))


def _right(kinds: Array) -> Array:
    """Chance that most annotators prefer the chosen answer: [kinds, strengths]."""
    won, lost = kinds[:, :1], kinds[:, 1:] - kinds[:, :1]
    return np.asarray(betainc(lost + _STRENGTHS, won + _STRENGTHS, 0.5))


def _ceiling(counts: Array, *, likelihoods: Array, right: Array) -> Array:
    """Ceiling from [..., kinds] pairs of each kind: [...]."""
    best = np.argmax(counts @ likelihoods, axis=-1)
    of_kind = np.moveaxis(right[:, best], 0, -1)
    return np.asarray((counts * of_kind).sum(axis=-1) / counts.sum(axis=-1))
