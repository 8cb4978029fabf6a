"""Rounds of training, collecting and labelling: each step once, whatever stops it in between."""

import json
from contextlib import suppress

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
)
from typer.testing import CliRunner

from rlhf_core.errors import CheckpointError, ConfigError, DataError
from rlhf_core.evaluation.plots import save_rounds_plot
from rlhf_core.feedback.agreement import choosers_against_votes
from rlhf_core.feedback.ballots import Ballot, BallotBox
from rlhf_core.feedback.collection import ORIGINS, Origin
from rlhf_core.feedback.results import CollectedPairs
from rlhf_core.schema import BatchResult, Comparison, DataVersion, Estimate, Vote
from rlhf_core.stages import collect as collection
from rlhf_core.stages.labels import pull as label_pull
from rlhf_core.stages.labels import simulated
from rlhf_core.storage.locks import locked
from rlhf_core.storage.records import read_record, read_records, write_records
from rlhf_flows import rounds
from rlhf_flows.commands.cli import app
from rlhf_flows.engine.flow_results import Rounds
from rlhf_flows.engine.inputs import RoundsInputs
from rlhf_flows.servers.notifications import FLOWS
from tests.feedback.conftest import make_collection

TRAINING = ["prepare", "sft", "reward", "judge", "policy", "evaluate", "promote"]


class World:
    """What costs something, in place of which something counts: in the order it was done."""

    def __init__(self, stages, monkeypatch, tmp_path):
        self.done = stages.calls
        self.failures = stages.failures
        self.versions = 0
        self.asked = []
        self._stages, self._path = stages, tmp_path
        monkeypatch.setattr(collection, "collect_pairs", self.collect)
        monkeypatch.setattr(label_pull, "publish", self.publish)
        monkeypatch.setattr(label_pull, "list_versions", lambda root: [])
        monkeypatch.setattr(simulated, "load_function", self.annotators(simulated.load_function))
        for module in (rounds, label_pull):
            monkeypatch.setattr(module.versioning, "repository_root", lambda folder: tmp_path)
        for name in ("require_remote", "publishing_base"):
            monkeypatch.setattr(rounds, name, lambda root: None)

    def collect(self, config, splits, models, choosers=()):
        self._stages._called("collect")
        self.asked.append((models[0].uri, [c.uri for c in choosers], config.feedback.seed))
        number = len(self.asked)
        folder = make_collection(config.feedback.output, name=f"c{number}")
        return CollectedPairs(collection=label_pull.read_collection(folder)[0], folder=folder)

    def annotators(self, load):
        def load_counted(key, spec):
            real = load(key, spec)

            def vote(rng, prompt, response_a, response_b):
                if response_a.startswith("3 "):
                    self._stages._called("vote")
                return real(rng, prompt, response_a, response_b)

            return vote

        return load_counted

    def publish(self, source, **_):
        self._stages._called("publish")
        assert len(read_records(source.path, Comparison)) >= 1
        self.versions += 1
        version = DataVersion(
            version=f"data-v{self.versions}", commit="c" * 40, date="2026-01-02",
            batch=f"batch-{self.versions:04d}.jsonl", rows=9, pairs=8, alpha=None, came=3, went=0,
            relabelled=0, sha256="a" * 64, dvc_md5="b" * 32,
        )  # fmt: skip
        return BatchResult(version=version, directory=self._path, set_aside={}, branch_moved=True)


@pytest.fixture
def world(stages, monkeypatch, tmp_path, without_engine):
    monkeypatch.setattr(rounds, "one_round", rounds.one_round.fn)
    return World(stages, monkeypatch, tmp_path)


def carry_out(settings, number=3, run="one"):
    return rounds.rounds_flow.fn(settings, RoundsInputs(run=run, rounds=number))


BETWEEN = ["collect", "vote", "publish"]
THREE_ROUNDS = [*TRAINING, *BETWEEN, *TRAINING, *BETWEEN, *TRAINING]


def steps(world):
    return [name for name in world.done if not name.startswith(("fetch_version", "check"))]


def test_every_round_trains_on_the_labels_of_the_one_before(world, with_feedback):
    result = carry_out(with_feedback(seed=5))
    assert steps(world) == THREE_ROUNDS
    assert [one.data_version for one in result.rounds] == [None, "data-v1", "data-v2"]
    kept = [json.loads((result.directory.with_name(one.run_id) / "config.json").read_text())
            for one in result.rounds]  # fmt: skip
    assert [config["data"]["version"] for config in kept] == [None, "data-v1", "data-v2"]
    assert [one.run_id for one in result.rounds] == ["one", "one-round-2", "one-round-3"]
    assert [seed for _, _, seed in world.asked] == [5, 6]
    assert [model for model, _, _ in world.asked] == [one.policy for one in result.rounds[:2]]
    assert (result.rounds[0].labelled, result.rounds[2].collection) == (6, None)


@pytest.mark.parametrize("stopped_in", ["policy", "promote", *BETWEEN])
def test_stopped_anywhere_it_goes_on_there_and_does_nothing_twice(world, with_feedback, stopped_in):
    settings = with_feedback()
    world.failures[stopped_in] = DataError("killed")
    with pytest.raises(DataError, match="killed"):
        carry_out(settings, number=2)
    result = carry_out(settings, number=2)
    once = [*TRAINING, *BETWEEN, *TRAINING]
    again = once.index(stopped_in)
    assert steps(world) == [*once[: again + 1], *once[again:]]
    assert [one.data_version for one in result.rounds] == [None, "data-v1"]
    before = list(world.done)
    assert carry_out(settings, number=2) == result
    assert world.done == before
    assert len(carry_out(settings, number=3).rounds) == 3
    assert steps(world)[-len(BETWEEN + TRAINING) :] == [*BETWEEN, *TRAINING]


@pytest.mark.parametrize(("asked", "then"), [(1, 2), (3, 1)])
def test_how_many_rounds_are_wanted_is_what_was_said_last(world, with_feedback, asked, then):
    """Whoever cleans knows by it whether the rounds were stopped: here in the collection."""
    settings = with_feedback()
    world.failures["collect"] = DataError("killed")
    for number in (asked, then):
        with suppress(DataError):
            carry_out(settings, number=number)
    record = read_record(settings.config.runs / "one" / "rounds.json", Rounds)
    assert (record.wanted, record.is_stopped) == (then, then > 1)


def test_rounds_that_fail_are_notified_once(stages, with_feedback):
    stages.failures["sft"] = DataError("no room")
    settings = with_feedback()
    with pytest.raises(DataError, match="no room"):
        rounds.rounds_flow(settings, RoundsInputs(run="told", rounds=1))
    with get_client(sync_client=True) as client:
        failed = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))),
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_="told")),
        )
    assert [(run.name, run.state_name) for run in failed] == [("rounds told", "Failed")]


def test_a_version_that_a_killed_round_published_is_not_published_again(
    world, with_feedback, monkeypatch
):
    settings = with_feedback()
    real = rounds._with_votes
    monkeypatch.setattr(rounds, "_with_votes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        carry_out(settings, number=2)
    monkeypatch.setattr(rounds, "_with_votes", real)
    result = carry_out(settings, number=2)
    assert (world.versions, result.rounds[1].data_version) == (1, "data-v1")
    assert steps(world) == [*TRAINING, *BETWEEN, *TRAINING]


def test_where_people_vote_it_waits_for_enough_of_them_and_goes_on(
    world, with_feedback, tmp_path, config_path
):
    with_feedback({"kind": "file"}, votes_per_pair=1, rounds={"min_labelled_fraction": 0.5})
    command = ["rounds", str(config_path), "--rounds", "2", "--run-id", "one"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 1, first.output
    said = " ".join(first.output.split())
    assert "labels are awaited: 0 of 6 pairs have the votes they need (1), 3 are needed" in said
    assert f"then: rlhf {' '.join(command)}" in said
    assert steps(world) == [*TRAINING, "collect"]
    for number, enough in ((2, False), (3, True)):
        votes = [{"pair": f"c1-{n:05d}", "annotator": "ann", "winner": "a"}
                 for n in range(1, number + 1)]  # fmt: skip
        (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, votes)))
        output = ["--votes", "votes.jsonl", "--output", "none.jsonl"]
        pulled = CliRunner().invoke(app, ["label", "pull", "c1", str(config_path), *output])
        assert pulled.exit_code == 0, pulled.output
        done = CliRunner().invoke(app, command)
        assert done.exit_code == (0 if enough else 1), done.output
    assert steps(world) == [*TRAINING, "collect", "publish", *TRAINING]


def test_a_run_that_a_gate_ended_without_a_policy_ends_the_rounds(world, stages, with_feedback):
    stages.verdicts["reward"] = "REJECT"
    result = carry_out(with_feedback())
    assert [one.verdict for one in result.rounds] == ["REJECT"]
    assert "collect" not in world.done


def test_a_policy_that_is_held_back_is_asked_all_the_same(world, stages, with_feedback):
    stages.verdicts["evaluate"] = "HOLD"
    result = carry_out(with_feedback(), number=2)
    assert [one.verdict for one in result.rounds] == ["HOLD", "HOLD"]
    assert world.asked[0][0] == result.rounds[0].policy
    assert result.rounds[0].champion is None


def test_the_reward_models_of_the_round_choose_its_pairs(world, with_feedback):
    carry_out(with_feedback(choice={"drawn_per_pair": 2}), number=2)
    assert world.asked[0][1] == ["models:/rlhf-reward/1", "models:/rlhf-judge/1"]


@pytest.mark.parametrize("champion", [True, False])
def test_later_rounds_start_from_the_champion_where_the_settings_say_so(
    world, stages, with_feedback, monkeypatch, champion
):
    uri = "models:/rlhf-policy/1"
    current = type("Release", (), {"policy": uri}) if champion else None
    monkeypatch.setattr(rounds, "read_history", lambda _: type("Now", (), {"current": current}))
    result = carry_out(with_feedback(rounds={"start": "champion"}), number=2)
    expected = str(stages.models[uri].path) if champion else None
    assert [one.base for one in result.rounds] == [None, expected]
    kept = json.loads((result.directory.with_name("one-round-2") / "config.json").read_text())
    assert kept["model"]["base"] == (expected or "base")


def test_what_later_rounds_would_lack_is_said_before_the_first_one_trains(
    world, with_feedback, settings, monkeypatch
):
    with pytest.raises(ConfigError, match="feedback: no such section"):
        carry_out(settings)
    dpo = with_feedback(choice={})
    dpo = dpo.model_copy(update={"overrides": ("policy={algorithm: dpo}",)})
    with pytest.raises(ConfigError, match="dpo trains no reward model that could disagree"):
        carry_out(dpo, run="two")

    def refuse(root):
        raise DataError("no remote")

    monkeypatch.setattr(rounds, "require_remote", refuse)
    with pytest.raises(DataError, match="no remote"):
        carry_out(with_feedback(), run="three")
    assert steps(world) == []


def test_fewer_rounds_than_there_are_and_a_second_process_are_refused(world, with_feedback):
    settings = with_feedback()
    result = carry_out(settings, number=2)
    with pytest.raises(ConfigError, match="run one is in round 2; give that number or more"):
        carry_out(settings, number=1)
    with locked(result.directory / rounds._LOCK), pytest.raises(CheckpointError, match="another"):
        carry_out(settings, number=2)


def test_the_picture_shows_every_round_that_was_measured(tmp_path):
    found = [Estimate(value=v, low=v - 0.1, high=v + 0.05, num_samples=9) for v in (0.6, 0.7, 0.8)]
    sizes = []
    for number in (1, 3):
        rounds_so_far = {
            n: {"gold/win_rate": one, "policy/win_rate": one}
            for n, one in enumerate(found[:number], start=1)
        }
        save_rounds_plot(tmp_path / "rounds.png", rounds_so_far)
        picture = (tmp_path / "rounds.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        sizes.append(len(picture))
    assert sizes[1] > sizes[0]


def test_models_that_chose_are_counted_where_the_votes_have_a_majority(tmp_path):
    folder = make_collection(tmp_path, size=4)
    rows = read_records(folder / ORIGINS, Origin)
    told = [row.model_copy(update={"probabilities": {"reward": p, "judge": 1 - p}})
            for row, p in zip(rows, (0.9, 0.8, 0.3, 0.9), strict=True)]  # fmt: skip
    write_records(folder / ORIGINS, told)
    choices = ("aab", "b", "bb", "ab")  # the last pair has no majority
    BallotBox(folder, "file").replace(
        Ballot(
            comparison_id=row.comparison_id,
            votes=tuple(Vote(annotator=f"p{n}", choice=c) for n, c in enumerate(each)),
        )
        for row, each in zip(rows, choices, strict=True)
    )
    found = choosers_against_votes(folder)
    assert found["reward"].value == pytest.approx(2 / 3)
    assert found["judge"].value == pytest.approx(1 / 3)
    assert found["judge"].num_samples == 3


def test_a_model_that_prefers_neither_answer_is_half_right(tmp_path):
    folder = make_collection(tmp_path, size=3)
    rows = read_records(folder / ORIGINS, Origin)
    told = [row.model_copy(update={"probabilities": {"reward": p}})
            for row, p in zip(rows, (0.5, 0.5, 0.2), strict=True)]  # fmt: skip
    write_records(folder / ORIGINS, told)
    BallotBox(folder, "file").replace(
        Ballot(comparison_id=row.comparison_id, votes=(Vote(annotator="ann", choice=choice),))
        for row, choice in zip(rows, "aab", strict=True)
    )
    assert choosers_against_votes(folder)["reward"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
