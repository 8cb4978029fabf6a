"""Learning-rate schedules."""

import math

import pytest

from rlhf_core.functional.schedule import learning_rate_factor


def factors(schedule, total, warmup):
    return [
        learning_rate_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule)
        for step in range(total)
    ]


def test_shapes_by_hand():
    assert factors("constant", 3, 0) == [1, 1, 1]
    assert factors("linear", 4, 0) == [1.0, 0.75, 0.5, 0.25]
    assert factors("cosine", 4, 0) == pytest.approx(
        [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]
    )
    assert factors("linear", 6, 2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (50, 0), (50, 7), (50, 50)])
def test_every_step_moves_and_none_passes_the_peak(schedule, total, warmup):
    got = factors(schedule, total, warmup)
    assert all(0 < factor <= 1 for factor in got)
    assert got[:warmup] == sorted(got[:warmup])
    assert got[warmup:] == sorted(got[warmup:], reverse=True)
