"""SIGKILL at any moment: run again, every stage ends with the same weights, registered once."""

import random
from collections import Counter

import pytest
from mlflow import MlflowClient

from rlhf_core.models.files import weights_sha256
from tests.flows.mortal import Mortal
from tests.flows.registered import TRAINED, check_runs, check_versions, training_steps
from tests.flows.tiny import CONFIG, make_tiny

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

SEED = 20
KILLS = {"prepare": 3, "sft": 4, "reward": 4, "judge": 4, "policy": 4, "evaluate": 3, "promote": 3}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """MLflow's tables, made once."""
    from rlhf_core.adapters.mlflow_client import _client

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    _client(f"sqlite:///{path}").search_experiments()
    return path


class Workplace:
    """A folder with the tiny demo, MLflow on SQLite, and commands that can be killed."""

    def __init__(self, path, database, mortal):
        self.path, self.mortal = path, mortal
        make_tiny(path)
        (path / "mlflow.db").write_bytes(database.read_bytes())

    def carry_out(self, stage, run, **moment):
        """What a person types; repeating it goes on with the stage."""
        role = ("--role", "judge") if stage == "judge" else ()
        words = ("reward" if role else stage, CONFIG, "--run-id", run, *role)
        if stage == "promote":
            words = ("promote", "models:/rlhf-policy@candidate")
        return self.mortal.rlhf(self.path, *words, **moment)

    def weights(self, run):
        """The sha256 of each stage's weights, as they lie on the disk."""
        return {s: weights_sha256(self.path / "runs" / run / s / "model") for s in TRAINED}

    @property
    def client(self):
        """MLflow's client for this folder's database."""
        uri = f"sqlite:///{self.path / 'mlflow.db'}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def start_over(self, stage, rounds):
        """Take away what would make a finished stage a matter of looking it up."""
        if stage == "prepare":
            (self.path / "data/prepared").rename(self.path / f"data/prepared-{rounds}")
        elif stage == "promote":
            self.client.delete_registered_model_alias("rlhf-policy", "champion")


@pytest.fixture(scope="module")
def mortal(tmp_path_factory):
    made = Mortal(tmp_path_factory.mktemp("mortal") / "log.txt")
    yield made
    made.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, database, mortal):
    """Every stage, run once and left alone, with what each command did."""
    made = Workplace(tmp_path_factory.mktemp("whole") / "work", database, mortal)
    made.outcomes = {stage: made.carry_out(stage, "run-1") for stage in KILLS}
    return made


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, database, undisturbed):
    """Every stage, killed again and again; one that got through all the same is started in a
    further run, until it was killed as often as it should be.
    """
    work = tmp_path_factory.mktemp("cut") / "work"
    made = Workplace(work, database, undisturbed.mortal)
    made.kills, made.runs = Counter(), Counter()
    dice = random.Random(SEED)
    for stage, wanted in KILLS.items():
        made.runs[stage] = 1
        while made.kills[stage] < wanted:
            moment = some_moment(dice, undisturbed.outcomes[stage])
            ended = made.carry_out(stage, f"run-{made.runs[stage]}", **moment)
            made.kills[stage] += ended["killed"]
            if not ended["killed"]:
                made.start_over(stage, made.runs[stage])
                made.runs[stage] += 1
        for number in range(1, made.runs[stage] + 1):
            made.carry_out(stage, f"run-{number}")
    return made


def some_moment(dice, whole):
    """When to kill: mostly right before something that lasts, sometimes by the clock."""
    if dice.random() < 0.3:
        return {"after_seconds": dice.uniform(0.05, 0.8) * whole["seconds"]}
    return {"at_effect": dice.randint(1, whole["effects"])}


def test_killed_stages_end_with_the_same_weights(undisturbed, disturbed):
    assert disturbed.kills.total() >= 20
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


def test_a_killed_stage_records_every_step_once(undisturbed, disturbed):
    expected = training_steps(undisturbed.client, "run-1")
    assert {stage for stage, _ in expected} == set(TRAINED)
    assert training_steps(disturbed.client, "run-1") == expected


def test_nothing_half_written_is_left_behind(disturbed):
    left = [path for path in disturbed.path.rglob("*") if path.suffix in (".tmp", ".old")]
    assert left == []
