"""Micro-batches: consecutive items under a budget of tokens."""

from collections.abc import Callable
from typing import TypeVar

Run = TypeVar("Run")

MANY_RUNS = 8
"""From so many runs on, making them even would take less than an eighth off the largest."""


def evenly(cut: Callable[[int], list[Run]], *, budget: int) -> list[Run]:
    """Cut into as few runs as ``budget`` allows, with the largest as small as so few can be.

    Peak memory is that of the largest run: 4,500 tokens under a budget of 4,096 take no more
    passes as 2,250 twice than as 4,000 and 500, and little more than half of the memory.

    Args:
        cut: fills one run after the other up to the budget it is given.
        budget: tokens of a run.
    """
    runs = cut(budget)
    if not 1 < len(runs) < MANY_RUNS:
        return runs
    low, high = 1, budget
    while low < high:
        middle = (low + high) // 2
        found = cut(middle)
        if len(found) > len(runs):
            low = middle + 1
        else:
            runs, high = found, middle
    return runs
