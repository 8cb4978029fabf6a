"""Learning-rate schedules as a function of the step."""

import math
from typing import Literal


def learning_rate_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["constant", "linear", "cosine"],
) -> float:
    """Share of the peak learning rate that a step uses.

        warm-up:  (step + 1) / (warmup_steps + 1)                       while step < warmup_steps
        progress: t = (step - warmup_steps) / (total_steps - warmup_steps), 0 <= t < 1
        constant: 1;   linear: 1 - t;   cosine: (1 + cos(pi t)) / 2

    Every step moves the weights: the first is not 0 and neither is the last. Cosine: Loshchilov &
    Hutter (2017), arXiv:1608.03983, eq. 5, with one period and minimum 0.

    Args:
        step: from 0 to ``total_steps`` - 1.
        total_steps: steps of the whole run, at least 1.
        warmup_steps: steps before the peak.
        schedule: shape after the warm-up.

    Returns:
        The factor, in (0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 1.0 - progress if schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2.0
