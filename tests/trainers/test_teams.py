"""How processes are divided among networks that learn apart."""

import pytest

from rlhf_core.trainers.teams import team_sizes


@pytest.mark.parametrize(
    ("loads", "processes", "sizes"),
    [
        ((1, 1), 2, [1, 1]),
        ((1, 1), 4, [2, 2]),
        ((1, 1), 5, [3, 2]),
        ((3, 1), 4, [3, 1]),
        ((2, 1), 2, [1, 1]),
        ((1, 2), 6, [2, 4]),
    ],
)
def test_each_network_gets_processes_for_its_size(loads, processes, sizes):
    assert team_sizes(loads, processes) == sizes


@pytest.mark.parametrize(
    ("loads", "processes"),
    [
        ((1, 1), 1),
        ((1, 1), 3),  # the one that trains a network by itself takes 1, an even part is 2/3
        ((2.1, 1), 2),
        ((1, 10), 3),
    ],
)
def test_all_train_each_network_where_a_team_would_wait_long(loads, processes):
    assert team_sizes(loads, processes) == []
