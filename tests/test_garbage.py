"""While libraries load and rows pass, Python searches for cyclic garbage seldom; then as before."""

import gc

import pytest

from rlhf_core import garbage
from rlhf_core.garbage import gc_threshold_raised, loading_begins, loading_ends


@pytest.fixture(autouse=True)
def usual_thresholds():
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.collect()  # what other tests left over counts no more
    yield
    gc.set_threshold(*before)


@pytest.fixture
def searches():
    """Generations that were searched."""
    found = []

    def note(phase, info):
        if phase == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_rows_that_go_by_themselves_make_nothing_be_searched(searches):
    with gc_threshold_raised():
        for _ in range(100):
            [{"row": [number]} for number in range(1_000)]
    assert searches == []
    [{"row": [number]} for number in range(1_000)]
    assert searches


def test_what_refers_to_itself_is_found_all_the_same(searches):
    with gc_threshold_raised():
        for _ in range(300_000):
            cycle = []
            cycle.append(cycle)
    assert searches


def test_thresholds_are_as_before_whatever_happens():
    with pytest.raises(ValueError, match="broken"), gc_threshold_raised(), gc_threshold_raised():
        raise ValueError("broken")
    assert gc.get_threshold() == (700, 10, 10)


def test_who_switched_the_search_off_finds_it_off():
    gc.set_threshold(0, 10, 10)
    with gc_threshold_raised():
        assert gc.get_threshold()[0] == 0
    assert gc.get_threshold()[0] == 0


@pytest.fixture
def nothing_frozen(monkeypatch):
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    monkeypatch.setattr(garbage, "_ended", [])
    yield
    gc.collect()
    if frozen:
        gc.freeze()


def test_what_is_loaded_is_looked_through_neither_meanwhile_nor_later(nothing_frozen, searches):
    loading_begins()
    loaded = [[number] for number in range(50_000)]
    assert searches == []
    loading_ends()
    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() >= len(loaded)


def test_what_was_trained_before_is_not_kept_by_the_next_stage(nothing_frozen):
    loading_begins()
    loading_ends()
    frozen = gc.get_freeze_count()
    cycle = []
    cycle.append(cycle)
    loading_begins()
    assert gc.get_threshold() == (700, 10, 10)
    loading_ends()
    assert gc.get_freeze_count() <= frozen
