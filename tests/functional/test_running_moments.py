import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.functional.running_moments import RunningMoments, update_moments


def test_two_batches_by_hand():
    moments = update_moments(RunningMoments(), torch.tensor([1.0, 3.0]))
    assert moments == RunningMoments(count=2, mean=2.0, sum_squares=2.0)
    moments = update_moments(moments, torch.tensor([5.0]))
    assert moments == RunningMoments(count=3, mean=3.0, sum_squares=8.0)
    assert moments.std == pytest.approx((8 / 3) ** 0.5)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), min_size=1, max_size=6))
def test_any_split_into_batches_gives_the_moments_of_the_whole(batches):
    moments = RunningMoments()
    for batch in batches:
        moments = update_moments(moments, torch.tensor(batch, dtype=torch.float64))
    whole = torch.tensor([x for batch in batches for x in batch], dtype=torch.float64)
    assert moments.count == len(whole)
    if len(whole):
        assert moments.mean == pytest.approx(whole.mean().item(), abs=1e-9)
        assert moments.std == pytest.approx(whole.std(correction=0).item(), abs=1e-4)


def test_large_offsets_do_not_cancel():
    moments = RunningMoments()
    for _ in range(100):
        moments = update_moments(moments, torch.tensor([1e6 - 1, 1e6 + 1], dtype=torch.float64))
    assert moments.std == pytest.approx(1.0)


def test_nothing_seen_has_no_spread():
    assert RunningMoments().std == 0.0
    assert update_moments(RunningMoments(), torch.tensor([])) == RunningMoments()
