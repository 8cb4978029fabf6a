"""Sides are shown in an order of their own, and votes come back about the pair's."""

import pytest

from rlhf_core.errors import DataError
from rlhf_core.stages.labels.label_studio import ballots_of, task_of
from tests.feedback.conftest import make_pair
from tests.feedback.servers import LabelStudio

PAIRS = {pair.comparison_id: pair for pair in map(make_pair, range(1, 31))}


@pytest.fixture
def studio():
    server = LabelStudio()
    server.add(1, [{"data": task_of(pair, 0)} for pair in PAIRS.values()])
    return server


def side_of(task, response):
    return "left" if task["data"]["response_a"] == response else "right"


def read(studio):
    ballots, aside = ballots_of(studio.tasks.values(), PAIRS, "http://x/projects/1")
    assert not aside
    return ballots


def test_about_half_of_the_sides_are_changed_and_always_the_same(studio):
    changed = sum(
        task["data"]["response_a"] != PAIRS[task["data"]["comparison_id"]].response_a
        for task in studio.tasks.values()
    )
    assert 5 < changed < 25
    assert all(task_of(pair, 0) == task_of(pair, 0) for pair in PAIRS.values())
    assert any(task_of(pair, 0) != task_of(pair, 1) for pair in PAIRS.values())


def test_a_vote_is_for_the_response_that_was_clicked_on_whatever_side(studio):
    for number, task in studio.tasks.items():
        pair = PAIRS[task["data"]["comparison_id"]]
        studio.annotate(number, 7, side_of(task, pair.response_b))
        studio.annotate(number, 8, "tie")
    for ballot in read(studio):
        assert [(vote.annotator, vote.choice) for vote in ballot.votes] == [
            ("7", "b"),
            ("8", "tie"),
        ]
        assert ballot.votes[0].seconds == 12.5


def test_a_skipped_task_has_no_vote(studio):
    studio.annotate(1, 7, None)
    studio.annotate(1, 8, "left", result=[])
    assert read(studio)[0].votes == ()


def test_tasks_of_others_in_the_project_are_passed_over(studio):
    studio.add(1, [{"data": {"text": "something else"}}, {"data": task_of(make_pair(99), 0)}])
    studio.annotate(31, 7, "left")
    studio.annotate(32, 7, "left")
    assert len(read(studio)) == len(PAIRS)


def test_a_task_whose_text_was_edited_is_refused(studio):
    studio.tasks[3]["data"]["response_a"] += " indeed"
    studio.annotate(3, 7, "left")
    with pytest.raises(DataError, match=r"projects/1, task 3: the task shows other responses"):
        read(studio)


def votes_on(studio, number):
    pair = PAIRS[studio.tasks[number]["data"]["comparison_id"]]
    [ballot] = [one for one in read(studio) if one.comparison_id == pair.comparison_id]
    return {vote.annotator: vote.choice for vote in ballot.votes}


def test_an_annotation_that_cannot_be_read_is_kept_aside_and_the_others_count(studio):
    studio.annotate(1, 7, "left")
    studio.annotate(1, 8, "unsure", id=52)
    studio.annotate(1, 9, "left", lead_time=-0.5)
    studio.annotate(2, 7, "tie")
    ballots, aside = ballots_of(studio.tasks.values(), PAIRS, "project 1")
    assert [[vote.annotator for vote in one.votes] for one in ballots[:3]] == [["7"], ["7"], []]
    assert [one.place for one in aside] == ["project 1, task 1", "project 1, task 1, annotation 52"]
    assert "lead_time" in aside[0].reason
    assert "'unsure'" in aside[1].reason


def test_a_relation_between_two_results_is_no_answer(studio):
    studio.annotate(1, 7, "left")
    link = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    studio.tasks[1]["annotations"][0]["result"].append(link)
    assert list(votes_on(studio, 1)) == ["7"]


def test_votes_of_two_tasks_of_one_pair_all_count(studio):
    [number] = studio.add(1, [{"data": dict(studio.tasks[1]["data"])}])["task_ids"]
    studio.annotate(1, 7, "left")
    studio.annotate(number, 8, "left")
    assert sorted(votes_on(studio, 1)) == ["7", "8"]


@pytest.mark.parametrize(
    ("first", "second"),
    [({}, {}), ({"updated_at": "2026-05-02"}, {"updated_at": "2026-05-03"})],
)
@pytest.mark.parametrize("apart", [False, True])
def test_of_a_person_who_votes_twice_the_later_vote_counts(studio, first, second, apart):
    studio.annotate(1, 7, "left", id=1, **first)
    again = studio.add(1, [{"data": studio.tasks[1]["data"]}])["task_ids"][0] if apart else 1
    studio.annotate(again, 7, "tie", id=2, **second)
    assert votes_on(studio, 1) == {"7": "tie"}


def test_an_earlier_vote_does_not_count_for_standing_last(studio):
    studio.annotate(1, 7, "tie", updated_at="2026-05-03")
    studio.annotate(1, 7, "left", updated_at="2026-05-02")
    assert votes_on(studio, 1) == {"7": "tie"}
