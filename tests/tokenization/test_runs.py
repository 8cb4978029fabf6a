"""Even micro-batches: no more passes than the budget asks for, and the smallest peak they allow."""

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.tokenization import evenly


def fill(sizes):
    def cut(budget):
        runs = []
        for size in sizes:
            if not runs or sum(runs[-1]) + size > budget:
                runs.append([])
            runs[-1].append(size)
        return runs

    return cut


def test_two_runs_share_the_tokens():
    assert evenly(fill([500] * 9), budget=4_000) == [[500] * 5, [500] * 4]


def test_one_run_stays_one():
    assert evenly(fill([3, 4]), budget=7) == [[3, 4]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 20))
def test_no_other_cut_into_as_few_runs_has_a_smaller_peak(sizes, budget):
    runs = evenly(fill(sizes), budget=budget)
    assert [size for run in runs for size in run] == sizes
    assert len(runs) == len(fill(sizes)(budget))
    # Every cut into as many runs: bit i says whether a run ends after item i.
    peaks = []
    for ends in range(1 << (len(sizes) - 1)):
        if ends.bit_count() + 1 != len(runs):
            continue
        cuts = [0, *(i + 1 for i in range(len(sizes)) if ends >> i & 1), len(sizes)]
        total = [0, *accumulate(sizes)]
        peaks.append(max(total[b] - total[a] for a, b in pairwise(cuts)))
    assert max(map(sum, runs)) <= max(min(peaks), *sizes)
