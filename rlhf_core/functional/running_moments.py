import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and spread of all numbers seen so far; a value, so a checkpoint can hold it."""

    count: int = 0
    mean: float = 0.0
    sum_squares: float = 0.0
    """Sum of squared deviations from ``mean``."""

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before the second number."""
        return math.sqrt(self.sum_squares / self.count) if self.count else 0.0


def update_moments(moments: RunningMoments, values: Tensor) -> RunningMoments:
    """Moments of everything seen before together with ``values``.

        d    = mean_b - mean_a
        mean = mean_a + d * n_b / (n_a + n_b)
        S    = S_a + S_b + d^2 * n_a * n_b / (n_a + n_b)

    Chan, Golub & LeVeque (1979), "Updating formulae and a pairwise algorithm for computing
    sample variances". Used to scale scores as in Zheng et al. (2023), "Secrets of RLHF",
    arXiv:2307.04964, section 5.3.1.

    Args:
        moments: what was seen before (a).
        values: [N] new numbers (b); N may be 0. Computed in float64.

    Returns:
        The joint moments, in the unit of ``values``.
    """
    if values.numel() == 0:
        return moments
    new = values.detach().double()
    new_mean = float(new.mean())
    new_sum_squares = float((new - new_mean).square().sum())
    total = moments.count + new.numel()
    difference = new_mean - moments.mean
    return RunningMoments(
        count=total,
        mean=moments.mean + difference * new.numel() / total,
        sum_squares=moments.sum_squares
        + new_sum_squares
        + difference**2 * moments.count * new.numel() / total,
    )
