"""Gold and proxy reward over the distance from SFT: best-of-n's estimator, units, Gao's forms.

Gao, Schulman & Hilton (2022), "Scaling laws for reward model overoptimization", arXiv:2210.10760:

    best of n:  R(d) = d (alpha - beta d)
    RL:         R(d) = d (alpha - beta log d),   d = sqrt(KL(policy || SFT)), nats
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhf_core.schema import Estimate
from rlhf_core.statistics.intervals import Resampling, estimate_mean, estimate_statistic
from rlhf_core.statistics.resampling import Array

Way = Literal["best of n", "PPO"]
PLAN = Resampling(seed=0)
"""Prompts are resampled; 95% intervals."""


def best_of_n_weights(num_drawn: int, n: int) -> Array:
    """Chance that the answer at each rank is the best of n of the answers drawn: [num_drawn].

        C(i - 1, n - 1) / C(N, n) for the i-th lowest of N

    Which n of the N are looked at does not matter, so all subsets count. Nakano et al. (2021),
    "WebGPT", arXiv:2112.09332, appendix I.

    Args:
        num_drawn: N, answers there are.
        n: how many of them one is chosen from, at most N.
    """
    chances = [math.comb(i - 1, n - 1) / math.comb(num_drawn, n) for i in range(1, num_drawn + 1)]
    return np.array(chances)


def best_of_n_values(chosen_by: Array, values: Array, sizes: Sequence[int]) -> Array:
    """Mean value of the answer chosen among n, over all ways to take n of those drawn.

    Of equal scores the one drawn later counts as the higher: the order of drawing is chance.

    Args:
        chosen_by: [prompts, N] scores that the choice is made by.
        values: [prompts, N] what the chosen answer is worth.
        sizes: each n.

    Returns:
        [number of sizes, prompts].
    """
    order = np.argsort(chosen_by, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    weights = np.stack([best_of_n_weights(values.shape[1], n) for n in sizes])
    return np.asarray(weights @ ranked.T, dtype=np.float64)


@dataclass(frozen=True)
class Unit:
    """What a reward is counted in: SFT's own answers are 0 on average, and 1 apart."""

    middle: Array
    """[prompts] mean over SFT's answers to each prompt."""
    deviation: float
    """Of SFT's answers to one prompt, over all prompts."""

    @classmethod
    def of(cls, sft: Array) -> "Unit":
        """Return the unit of rewards of SFT's answers, [prompts, N], N at least 2."""
        middle = sft.mean(axis=1)
        squares = (sft - middle[:, None]) ** 2
        return cls(middle, math.sqrt(squares.sum() / (sft.size - len(sft))))

    def __call__(self, rewards: Array) -> Array:
        """Return rewards [prompts, k] in this unit."""
        return np.asarray((rewards - self.middle[:, None]) / self.deviation)


@dataclass(frozen=True)
class Curve:
    """Points of one way to optimise one proxy, by rising distance: [points, prompts] each."""

    way: Way
    proxy: str
    """What was optimised, in words."""
    steps: tuple[int, ...]
    """n, or the iterations of training."""
    kl: Array
    """From SFT, nats per response."""
    gold_reward: Array
    """In SFT's deviations, as the next."""
    proxy_reward: Array
    offered: int | None = None
    """Step whose checkpoint the judge chose; None where nobody chose."""

    @property
    def distances(self) -> Array:
        """[points] d, square roots of nats."""
        return distance(self.kl.mean(axis=1))


def distance(kl: Array) -> Array:
    """Return square roots of KLs; of estimates that noise put below 0 it is 0."""
    return np.asarray(np.sqrt(np.maximum(kl, 0.0)))


def bent(way: Way, distances: Array) -> Array:
    """Return what beta is the weight of: d^2, or d log d, which is 0 at 0."""
    if way == "best of n":
        return distances**2
    return np.asarray(distances * np.log(np.where(distances > 0.0, distances, 1.0)))


def coefficients(way: Way, distances: Array, rewards: Array) -> tuple[Array, Array]:
    """Alpha and beta by least squares, all points of one weight: [...] from [..., points].

    Both forms are linear in them: R = alpha x - beta z with x = d and z = d^2 or d log d.
    """
    x, z = distances, bent(way, distances)
    xx, xz, zz = (x * x).sum(-1), (x * z).sum(-1), (z * z).sum(-1)
    xr, zr = (x * rewards).sum(-1), (z * rewards).sum(-1)
    determinant = xx * zz - xz * xz
    return (xr * zz - zr * xz) / determinant, (xr * xz - zr * xx) / determinant


@dataclass(frozen=True)
class Fit:
    """Gao's form through the gold reward of a curve."""

    way: Way
    alpha: Estimate
    beta: Estimate

    def __call__(self, distances: Array) -> Array:
        """Return the form's reward at each distance."""
        return self.alpha.value * distances - self.beta.value * bent(self.way, distances)

    @property
    def peak(self) -> float | None:
        """Distance from which the form falls; None where it never does."""
        if self.beta.value <= 0.0:
            return None
        ratio = self.alpha.value / self.beta.value
        if self.way == "best of n":
            return max(ratio / 2.0, 0.0)
        return math.exp(ratio - 1.0)


def fitted(curve: Curve) -> Fit:
    """Fit the form to the gold reward; in the intervals distances vary with the prompts too."""
    columns = [*curve.kl, *curve.gold_reward]
    points = len(curve.kl)

    def coefficient(which: int) -> Callable[..., Array]:
        def of(*drawn: Array, axis: int) -> Array:
            means = np.stack([column.mean(axis=axis) for column in drawn], axis=-1)
            distances = distance(means[..., :points])
            return coefficients(curve.way, distances, means[..., points:])[which]

        return of

    alpha, beta = (estimate_statistic(coefficient(which), columns, PLAN) for which in (0, 1))
    return Fit(curve.way, alpha, beta)


def means(rewards: Array) -> list[Estimate]:
    """Return the mean of each point, [points, prompts], with its interval."""
    return [estimate_mean(of_prompts, PLAN) for of_prompts in rewards]


def lost(curve: Curve) -> Estimate:
    """Gold reward at the farthest point less that at its best point, paired by prompt.

    The best point is the best of these very prompts, so what was lost is a little too large.
    """
    best = int(curve.gold_reward.mean(axis=1).argmax())
    return estimate_mean(curve.gold_reward[-1] - curve.gold_reward[best], PLAN)
