"""Rows kept in one file, in memory or mapped, train to the bits that a list of them trains to."""

import pytest

from rlhf_core.tokenization import TokenizedPrompt, keep_rows, rows
from rlhf_core.trainers.loop import draw
from tests.trainers.ppo_toys import RLOO, toy_prompts, train_ppo
from tests.trainers.toys import ListTracker, train_stage


def told(tracker):
    """What is logged, but for the seconds."""
    return [
        (step, {name: value for name, value in metrics.items() if "second" not in name})
        for step, metrics in tracker.rows
    ]


NIGHTLY = pytest.mark.nightly


def trainers():
    """At every change one for each kind of rows: the reward model has the pairs."""
    for stage in ("sft", "reward", "dpo", "kto"):
        marks = NIGHTLY if stage == "dpo" else ()
        yield pytest.param(
            lambda *given, s=stage, **more: train_stage(s, *given, **more), id=stage, marks=marks
        )
    yield pytest.param(train_ppo, id="ppo", marks=NIGHTLY)
    yield pytest.param(lambda *given, **more: train_ppo(*given, ptx_coef=0.1, **more, **RLOO),
                       id="rloo-and-ptx")  # fmt: skip


@pytest.mark.parametrize("train", list(trainers()))
def test_the_same_bits_from_a_list_from_memory_and_from_a_mapped_file(
    train, causal_directory, tmp_path, monkeypatch
):
    def keep(given):
        return keep_rows(type(given[0]), given, tmp_path / "rows")

    listed = ListTracker()
    *_, weights = train(causal_directory, tmp_path / "list", listed)
    for size in (1 << 20, 1):
        monkeypatch.setattr(rows, "MAPPED_BYTES", size)
        tracker = ListTracker()
        *_, kept = train(causal_directory, tmp_path / str(size), tracker, keep=keep)
        assert kept == weights
        assert told(tracker) == told(listed)
    # A run that was begun on a list goes on from a mapped file: the same bytes identify its data.
    finished = ListTracker()
    *_, again = train(causal_directory, tmp_path / "list", finished, keep=keep)
    assert again == weights
    assert len(finished.rows) <= 1
    assert list((tmp_path / "rows").iterdir()) == []


def test_a_prompt_that_is_drawn_twice_is_one_object_that_its_responses_share(tmp_path):
    kept = keep_rows(TokenizedPrompt, toy_prompts(3), tmp_path)
    drawn = draw(kept, drawn=0, count=9, seed=0)
    assert {id(row) for row in drawn} == {id(row) for row in drawn[:3]}
