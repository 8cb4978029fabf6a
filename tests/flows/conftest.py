import shutil

import pytest
import yaml

from rlhf_flows.commands.local import in_this_process
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.servers import temporary_server
from tests.flows.fakes import FakeStages
from tests.flows.finished import Folder
from tests.flows.mortal import Mortal
from tests.flows.tiny import STAGES, Workplace

SIMULATED = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory, prefect_database, forked):
    """One temporary Prefect server for all tests of this folder: starting it is slow."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temporary_server, "subprocess", forked.subprocess())
        patch.setenv("PREFECT_HOME", str(home))
        with in_this_process():
            yield


@pytest.fixture
def without_engine(request, monkeypatch):
    """The test's flows as plain functions: what they decide needs no run in Prefect.

    ``test_pipeline.py`` has some of it with Prefect's engine, the served tests have all of it.
    """
    from rlhf_flows import pipeline, stages

    for name in ("prepare", "sft", "reward", "policy", "evaluate", "promote"):
        plain = getattr(stages, f"{name}_stage").fn
        for module in (stages, pipeline, request.module):
            if hasattr(module, f"{name}_stage"):
                monkeypatch.setattr(module, f"{name}_stage", plain)
    whole = pipeline.rlhf_pipeline.fn
    for module in (pipeline, request.module):
        monkeypatch.setattr(module, "rlhf_pipeline", whole, raising=module is pipeline)


@pytest.fixture
def stages(tmp_path, monkeypatch, prefect_server):
    """Fake stages in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return FakeStages(tmp_path).install(monkeypatch)


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        """
model: {base: base}
data: {preferences: {path: raw.jsonl}}
policy: {algorithm: ppo}
gates:
  sft: [{metric: sft/heldout_nll, at_most: 2.0}]
  reward: [{metric: reward/heldout_accuracy, at_least: 0.6}]
  policy: [{metric: policy/win_rate, at_least: 0.55}]
"""
    )
    return path


@pytest.fixture
def settings(config_path):
    return RunSettings(file=config_path)


@pytest.fixture(scope="session")
def mortal(tmp_path_factory, forked):
    made = Mortal(tmp_path_factory.mktemp("mortal") / "log.txt", forked)
    yield made
    made.end()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, fresh_database, mortal):
    """The tiny demo, every stage run once and left alone, with what each command did."""
    made = Workplace(tmp_path_factory.mktemp("whole") / "work", fresh_database, mortal)
    made.outcomes = {stage: made.carry_out(stage, "run-1") for stage in STAGES}
    return made


@pytest.fixture
def with_feedback(config_path, tmp_path):
    """Settings that collect votes, of the demo's annotators unless another labeler is given."""

    def make(labeler=SIMULATED, **changes):
        raw = yaml.safe_load(config_path.read_text())
        output = str(tmp_path / "collected")
        raw["feedback"] = {"output": output, "labeler": labeler, "votes_per_pair": 3, **changes}
        config_path.write_text(yaml.safe_dump(raw))
        return RunSettings(file=config_path)

    return make


@pytest.fixture
def folder(settings, tmp_path, mlflow_home, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Folder(settings.config.model_copy(update={"runs": tmp_path / "runs"}))
