import pytest

from rlhf_core.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    KlLimitError,
    RegistryError,
)
from rlhf_core.stages.training import reward_terms
from rlhf_core.storage.records import write_text
from rlhf_flows import pipeline
from rlhf_flows import stages as flow_stages
from rlhf_flows.engine import stage
from rlhf_flows.engine.inputs import (
    EvaluateInputs,
    PipelineInputs,
    PolicyInputs,
    PrepareInputs,
    PromoteInputs,
    RewardInputs,
    SftInputs,
)
from rlhf_flows.engine.runs import stage_folder
from rlhf_flows.engine.runs.folder import locate_run, open_run
from rlhf_flows.engine.runs.locks import hold_stage, is_worked_on
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.engine.runs.stage_folder import discard_checkpoints
from rlhf_flows.pipeline import rlhf_pipeline
from rlhf_flows.stages import (
    evaluate_stage,
    policy_stage,
    prepare_stage,
    promote_stage,
    reward_stage,
    sft_stage,
)

pytestmark = pytest.mark.usefixtures("without_engine")


def test_a_stage_alone_takes_the_registrys_candidate(stages, settings):
    sft = sft_stage(settings, SftInputs(run="one"))
    stages.models["models:/rlhf-sft@candidate"] = sft.model
    reward_stage(settings, RewardInputs(run="two", new_run=True))
    assert stages.calls.count("sft") == 1
    assert stages.calls[-1] == "reward"


def test_without_a_candidate_the_champion_is_taken(stages, settings):
    sft = sft_stage(settings, SftInputs(run="one"))
    stages.models["models:/rlhf-sft@champion"] = sft.model
    assert reward_stage(settings, RewardInputs(run="two", new_run=True)).model.name == "rlhf-reward"


def test_without_any_sft_model_the_message_says_what_to_run(stages, settings):
    with pytest.raises(RegistryError, match="run `rlhf sft CONFIG` first"):
        reward_stage(settings, RewardInputs(run="one", new_run=True))


@pytest.mark.parametrize(
    ("stage", "inputs"),
    [
        (reward_stage, RewardInputs(run="won")),
        (policy_stage, PolicyInputs(run="won")),
        (evaluate_stage, EvaluateInputs(run="won")),
        (promote_stage, PromoteInputs(run="won")),
    ],
)
def test_a_deployed_stage_refuses_a_run_that_is_not_there(stages, settings, stage, inputs):
    sft = sft_stage(settings, SftInputs(run="one"))
    stages.models["models:/rlhf-sft@candidate"] = sft.model
    with pytest.raises(ConfigError, match=r"runs/won: no such run here.*mean one\?.*new_run"):
        stage(settings, inputs)
    assert not (stages.directory / "runs/won").exists()
    assert stages.calls == ["prepare", "sft"]


def test_a_stage_with_the_same_inputs_is_not_repeated_unless_forced(stages, settings):
    for force in (False, False, True):
        sft_stage(settings, SftInputs(run="one", force=force))
    assert stages.calls.count("sft") == 2


def test_a_forced_stage_keeps_the_earlier_attempt_beside_it(stages, settings):
    sft_stage(settings, SftInputs(run="one"))
    sft_stage(settings, SftInputs(run="one", force=True))
    assert (stages.directory / "runs/one/sft.1/result.json").exists()


def test_a_stage_is_repeated_when_what_it_was_made_from_changed(stages, settings):
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    other = stages.models["models:/rlhf-policy/1"].model_copy(update={"sha256": "f" * 64})
    stages.models["models:/other/1"] = other
    evaluate_stage(settings, EvaluateInputs(run="one", policy="models:/other/1"))
    assert stages.calls.count("evaluate") == 2


def test_promotion_needs_an_evaluation(stages, settings):
    sft_stage(settings, SftInputs(run="one"))
    with pytest.raises(RegistryError, match="no evaluation"):
        promote_stage(settings, PromoteInputs(run="one"))


def test_a_killed_stage_finds_its_own_folder_again(stages, settings):
    stages.failures["sft"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sft_stage(settings, SftInputs(run="one"))
    checkpoint = stages.directory / "runs/one/sft/checkpoint"
    checkpoint.write_text("step 3")
    sft_stage(settings, SftInputs(run="one"))
    assert checkpoint.read_text() == "step 3"


def test_a_stage_is_repeated_when_the_base_model_changed(stages, settings):
    sft_stage(settings, SftInputs(run="one"))
    stages.base = "other weights"
    sft_stage(settings, SftInputs(run="one"))
    assert stages.calls.count("sft") == 2


def test_a_policy_is_repeated_when_a_model_that_scores_it_changed(stages, config_path, monkeypatch):
    terms = "policy.rewards=[{kind: model, models: [run, models:/helpful/1]}]"
    settings = RunSettings(file=config_path, overrides=(terms,))
    asked, weights = [], "a"

    def find_scorers(terms, resolve):
        asked.append(terms)
        model = stages.models["models:/rlhf-reward/1"]
        return {"models:/helpful/1": model.model_copy(update={"sha256": weights * 64})}

    monkeypatch.setattr(reward_terms, "find_scorers", find_scorers)
    for weights in "aab":  # noqa: B007 - find_scorers reads it
        rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert stages.calls.count("policy") == 2
    assert len(asked) == 3


def test_preparation_is_repeated_when_the_raw_data_changed(stages, settings):
    for raw in ("first", "first", "second"):
        stages.raw = raw
        prepare_stage(settings, PrepareInputs(run="one"))
    assert stages.calls.count("prepare") == 2


def test_preparation_is_repeated_when_its_dataset_is_gone(stages, settings):
    for _ in range(2):
        splits = prepare_stage(settings, PrepareInputs(run="one"))
    assert stages.calls.count("prepare") == 1
    splits.report.unlink()
    assert prepare_stage(settings, PrepareInputs(run="one")).report.is_file()
    assert stages.calls.count("prepare") == 2


def test_a_stage_reads_a_published_dataset_version_by_its_name(stages, settings):
    sft_stage(settings, SftInputs(run="one", dataset="data-v3"))
    assert stages.calls == ["fetch_version data-v3", "sft"]


def test_a_pipeline_keeps_its_run_from_being_deleted_between_stages(stages, settings, monkeypatch):
    conclude, seen = pipeline.conclude, []

    def look(result):
        seen.append(is_worked_on(locate_run("one", settings.config.runs)))
        return conclude(result)

    monkeypatch.setattr(pipeline, "conclude", look)
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert seen == [True]
    assert not is_worked_on(locate_run("one", settings.config.runs))


def test_force_does_not_pull_the_folder_from_under_a_stage_at_work(stages, settings):
    sft_stage(settings, SftInputs(run="one"))
    with (
        hold_stage(open_run(settings.config, "one"), "sft"),
        pytest.raises(CheckpointError, match="another process"),
    ):
        sft_stage(settings, SftInputs(run="one", force=True))
    assert (stages.directory / "runs/one/sft/result.json").exists()
    assert not (stages.directory / "runs/one/sft.1").exists()


@pytest.fixture
def told(monkeypatch):
    """Events that were announced, with what they were about."""
    found = []
    for module in (flow_stages, stage):
        monkeypatch.setattr(
            module, "announce", lambda event, context, **payload: found.append(event)
        )
    return found


def test_a_promotion_is_applied_again_and_announced_when_it_moves_something(stages, settings, told):
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert told == ["rlhf.promoted"]
    stages.champion = None  # somebody rolled back
    assert promote_stage(settings, PromoteInputs(run="one")).moved
    assert told == ["rlhf.promoted"] * 2
    assert not promote_stage(settings, PromoteInputs(run="one")).moved
    assert told == ["rlhf.promoted"] * 2


def test_what_is_announced_of_a_gate_is_what_held_the_model_back(stages, settings, monkeypatch):
    said, outcome = {}, stages._outcome

    def with_reasons(*arguments):
        result = outcome(*arguments)
        reasons = ("HOLD: few samples", "PROMOTE: short enough", "HOLD: look 2")
        decision = result.decision.model_copy(update={"reasons": reasons})
        return result.model_copy(update={"decision": decision})

    monkeypatch.setattr(stages, "_outcome", with_reasons)
    monkeypatch.setattr(stage, "announce", lambda event, context, **payload: said.update(payload))
    stages.verdicts["sft"] = "HOLD"
    sft_stage(settings, SftInputs(run="one"))
    assert said["reasons"] == "HOLD: few samples; HOLD: look 2"


def test_a_failed_gate_is_announced_once_however_often_it_is_read(stages, settings, told):
    stages.verdicts["sft"] = "HOLD"
    for _ in range(2):
        assert sft_stage(settings, SftInputs(run="one")).decision.verdict == "HOLD"
    assert told == ["rlhf.gate-failed"]


@pytest.mark.parametrize(
    ("error", "events"),
    [
        (KlLimitError("the policy was out of bounds from the start"), ["rlhf.kl-spike"]),
        (DivergedError("step 3: the model's KL weight is not finite"), []),
    ],
)
def test_a_training_that_the_kl_watch_stopped_is_announced(stages, settings, told, error, events):
    stages.failures["policy"] = error
    with pytest.raises(DivergedError):
        rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert told == events


@pytest.mark.parametrize("answer", [None, "ASKED", "HOLD", "REJECT"])
def test_promotion_alone_does_not_pass_by_the_person_who_was_asked(stages, config_path, answer):
    asking = RunSettings(file=config_path, overrides=("promotion.approval=person",))
    result = rlhf_pipeline(asking, PipelineInputs(run="one"))
    assert result.verdict == "HOLD"
    stages.approvals = {result.policy.uri: answer} if answer else {}
    with pytest.raises(RegistryError, match="not approved"):
        promote_stage(asking, PromoteInputs(run="one"))
    stages.approvals[result.policy.uri] = "PROMOTE"
    assert promote_stage(asking, PromoteInputs(run="one")).moved


def test_what_the_gates_stop_asks_nobody(stages, config_path):
    stages.verdicts["evaluate"] = "HOLD"
    asking = RunSettings(file=config_path, overrides=("promotion.approval=person",))
    assert rlhf_pipeline(asking, PipelineInputs(run="one")).verdict == "HOLD"
    assert not stages.approvals
    assert promote_stage(asking, PromoteInputs(run="one")).verdict == "HOLD"


def test_an_evaluation_is_repeated_when_the_champion_changed(stages, settings):
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    other = stages.models["models:/rlhf-policy/1"].model_copy(
        update={"uri": "models:/other/1", "sha256": "f" * 64}
    )
    stages.models["models:/other/1"] = other
    evaluate_stage(settings, EvaluateInputs(run="one"))
    assert stages.calls.count("evaluate") == 1
    stages.champion = "models:/other/1"
    evaluate_stage(settings, EvaluateInputs(run="one"))
    assert stages.calls.count("evaluate") == 2


def leave_checkpoints(stages, stage, run="one"):
    """What a training leaves in its folder; and a file of somebody's own."""
    folder = stages.directory / "runs" / run / stage / "checkpoints"
    for place in (folder, folder / "kept"):
        for step in (1, 2):
            (place / f"step-{step:09d}").mkdir(parents=True)
            (place / f"step-{step:09d}" / "tensors.safetensors").write_text("weights")
    return folder


def with_checkpoints(stages, monkeypatch, before=lambda: None):
    """Let every training leave checkpoints before it returns its result."""
    called = stages._called

    def train(stage):
        if stage in ("sft", "reward", "judge", "policy"):
            leave_checkpoints(stages, stage)
        before()
        called(stage)

    monkeypatch.setattr(stages, "_called", train)


def has_checkpoints(stages, run="one"):
    return {path.parent.name for path in stages.directory.glob(f"runs/{run}/*/checkpoints")}


def test_checkpoints_go_with_their_stage_and_the_policys_with_the_decision(
    stages, settings, monkeypatch
):
    seen = []
    with_checkpoints(stages, monkeypatch, before=lambda: seen.append(has_checkpoints(stages)))
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert seen == [set(), {"sft"}, {"reward"}, {"judge"}, {"policy"}, {"policy"}, set()]
    assert has_checkpoints(stages) == set()


def test_a_setting_keeps_checkpoints_and_may_change_while_a_run_is_gone_on_with(
    stages, settings, monkeypatch
):
    with_checkpoints(stages, monkeypatch)
    kept = settings.model_copy(update={"overrides": (*settings.overrides, "keep_checkpoints=true")})
    rlhf_pipeline(kept, PipelineInputs(run="one"))
    assert has_checkpoints(stages) == {"sft", "reward", "judge", "policy"}
    calls = list(stages.calls)
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert has_checkpoints(stages) == set()
    assert [call for call in stages.calls if call not in calls] == []


def test_a_policy_on_hold_keeps_its_checkpoints(stages, settings, monkeypatch):
    with_checkpoints(stages, monkeypatch)
    stages.verdicts["evaluate"] = "HOLD"
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert has_checkpoints(stages) == {"policy"}


def test_a_decision_about_another_policy_leaves_the_runs_own_checkpoints(
    stages, settings, monkeypatch
):
    with_checkpoints(stages, monkeypatch)
    stages.verdicts["evaluate"] = "HOLD"
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    other = stages.models["models:/rlhf-policy/1"].model_copy(update={"sha256": "f" * 64})
    stages.models["models:/other/1"] = other
    stages.verdicts["evaluate"] = "PROMOTE"
    evaluate_stage(settings, EvaluateInputs(run="one", policy="models:/other/1"))
    assert has_checkpoints(stages) == {"policy"}


def test_a_stage_that_fails_at_its_end_keeps_its_checkpoints(stages, settings, monkeypatch):
    """Until the result is written the next attempt goes on from them."""
    with_checkpoints(stages, monkeypatch)
    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(stage_folder, "write_text", fail_at("result.json"))
        with pytest.raises(OSError, match=r"result\.json"):
            sft_stage(settings, SftInputs(run="one"))
    assert has_checkpoints(stages) == {"sft"}
    (stages.directory / "runs/one/sft/checkpoints/notes.txt").write_text("mine")
    monkeypatch.setattr(stages, "_called", stages.calls.append)
    sft_stage(settings, SftInputs(run="one"))
    left = [path.name for path in (stages.directory / "runs/one/sft/checkpoints").iterdir()]
    assert left == ["notes.txt"], "only checkpoints are ours"


def fail_at(name):
    def write(path, text):
        if path.name == name:
            raise OSError(f"no room for {path}")
        write_text(path, text)

    return write


def test_checkpoints_of_a_stage_that_is_being_repeated_are_left(stages, settings):
    sft_stage(settings, SftInputs(run="one"))
    context, folder = locate_run("one", settings.config.runs), leave_checkpoints(stages, "sft")
    with hold_stage(context, "sft"):
        assert not discard_checkpoints(context, "sft")
    (folder.parent / "result.json").unlink()
    assert not discard_checkpoints(context, "sft")
    assert len(list(folder.glob("step-*"))) == len(list(folder.glob("kept/step-*"))) == 2
