"""SIGKILL at any moment: run again, every stage ends with the same weights, registered once."""

import random
from collections import Counter

import pytest

from rlhf_core.models.files import weights_sha256
from tests.flows.registered import (
    check_runs,
    check_versions,
    recorded_steps,
    steps_recorded_twice,
)
from tests.flows.tiny import STAGES, TRAINED, Workplace

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.xdist_group("faults")]

SEED = 20
KILLS = 4
"""Of each stage."""


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, fresh_database, undisturbed):
    """Every stage, killed again and again; one that got through all the same is started in a
    further run, until it was.
    """
    work = tmp_path_factory.mktemp("cut") / "work"
    made = Workplace(work, fresh_database, undisturbed.mortal)
    made.kills, made.runs = Counter(), Counter()
    dice = random.Random(SEED)
    for stage in STAGES:
        made.runs[stage] = 1
        while made.kills[stage] < KILLS:
            moment = some_moment(dice, undisturbed.outcomes[stage])
            ended = made.carry_out(stage, f"run-{made.runs[stage]}", **moment)
            made.kills[stage] += ended["killed"]
            if not ended["killed"]:
                made.start_over(stage, made.runs[stage])
                made.runs[stage] += 1
        last = max(made.runs[stage], made.runs["policy"] if stage == "evaluate" else 1)
        for number in range(1, last + 1):
            made.carry_out(stage, f"run-{number}")
    return made


def some_moment(dice, whole):
    """When to kill: mostly right before something that lasts, sometimes by the clock."""
    if dice.random() < 0.3:
        return {"after_seconds": dice.uniform(0.05, 0.8) * whole["seconds"]}
    return {"at_effect": dice.randint(1, whole["effects"])}


def test_killed_stages_end_with_the_same_weights(undisturbed, disturbed):
    assert set(disturbed.kills) == set(STAGES)
    expected = undisturbed.weights("run-1")
    assert disturbed.weights("run-1") == expected
    for stage in TRAINED:
        for number in range(2, disturbed.runs[stage] + 1):
            again = disturbed.path / f"runs/run-{number}/{stage}/model"
            assert weights_sha256(again) == expected[stage], (stage, number)


def test_killed_preparation_ends_with_the_same_bytes(undisturbed, disturbed):
    files = [
        {path.name: path.read_bytes() for path in (made.path / "data/prepared").glob("*.jsonl")}
        for made in (undisturbed, disturbed)
    ]
    assert files[0] == files[1]
    assert "reward_train.jsonl" in files[0]


def test_a_killed_stage_is_registered_once_and_whole(disturbed):
    check_versions(disturbed.client)
    check_runs(disturbed.client)


def test_a_killed_stage_records_no_step_twice(disturbed):
    assert steps_recorded_twice(disturbed.client, "run-1") == []


def test_a_killed_stage_leaves_no_gap_in_a_curve(undisturbed, disturbed):
    expected, found = (recorded_steps(made.client, "run-1") for made in (undisturbed, disturbed))
    curves = [key for key, steps in expected.items() if key[0] in TRAINED and len(steps) > 1]
    assert {stage for stage, _ in curves} == set(TRAINED)
    for key in curves:
        assert set(found[key]) == set(expected[key]), key


def test_nothing_half_written_is_left_behind(disturbed):
    for ending in ("tmp", "old"):  # if no kill happened to leave one
        (disturbed.path / f"runs/run-1/sft/.model.1.{ending}").mkdir()
    disturbed.carry_out("sft", "run-1")
    left = [path for path in disturbed.path.rglob("*") if path.suffix in (".tmp", ".old")]
    assert left == []


def test_a_stage_that_found_no_room_goes_on_once_there_is(undisturbed):
    cannot = undisturbed.carry_out("sft", "run-2", largest_file=150_000, may_end=(2,))
    assert cannot["status"] == 2
    last = undisturbed.mortal.log.read_text().splitlines()[-1]
    assert "cannot be written" in last
    assert "then repeat the command" in last
    undisturbed.carry_out("sft", "run-2")
    assert (
        weights_sha256(undisturbed.path / "runs/run-2/sft/model")
        == (undisturbed.weights("run-1")["sft"])
    )
