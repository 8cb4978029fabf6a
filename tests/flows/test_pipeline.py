import pytest

from rlhf_core.errors import CheckpointError, ConfigError, DataError
from rlhf_core.stages import prepare
from rlhf_core.stages.preparation import dataset
from rlhf_flows.engine.inputs import PipelineInputs, SftInputs
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.pipeline import rlhf_pipeline
from rlhf_flows.stages import sft_stage

EVERY_STAGE = ["prepare", "sft", "reward", "judge", "policy", "evaluate", "promote"]


def run(settings, run="one"):
    return rlhf_pipeline(settings, PipelineInputs(run=run))


def test_every_stage_runs_once_and_in_order(stages, settings):
    result = run(settings)
    assert stages.calls == EVERY_STAGE
    assert result.verdict == "PROMOTE"
    assert result.promotion.champion == result.policy.uri
    assert [timing.stage for timing in result.timings] == EVERY_STAGE


def test_stages_know_the_flow_run_that_drives_them(stages, settings):
    run(settings)
    ids = {context.flow_run_id for context in stages.contexts.values()}
    assert None not in ids
    assert len(ids) == len(stages.contexts)


@pytest.mark.usefixtures("without_engine")
@pytest.mark.parametrize("verdict", ["HOLD", "REJECT"])
@pytest.mark.parametrize("stage", ["sft", "reward", "judge", "evaluate"])
def test_a_gate_that_says_no_ends_the_run_before_the_next_stage(stages, settings, stage, verdict):
    stages.verdicts[stage] = verdict
    result = run(settings)
    assert stages.calls[-1] == stage
    assert result.verdict == verdict
    assert result.decided_by == stage
    assert result.reasons == (f"{stage}/quality says {verdict}",)
    assert result.promotion is None
    assert (result.last_model == result.policy) is (stage == "evaluate")


def test_dpo_needs_a_judge_and_no_reward_model(stages, config_path):
    dpo = RunSettings(file=config_path, overrides=("policy={algorithm: dpo}",))
    result = run(dpo)
    assert "reward" not in stages.calls
    assert "judge" in result.stages
    assert result.verdict == "PROMOTE"


def test_a_resumed_run_repeats_only_what_had_not_finished(stages, settings):
    stages.failures["policy"] = DataError("no rows")
    with pytest.raises(DataError):
        run(settings)
    assert stages.calls == EVERY_STAGE[:5]
    result = run(settings)
    assert stages.calls == EVERY_STAGE[:5] + EVERY_STAGE[4:]
    assert [timing.reused for timing in result.timings] == [True] * 4 + [False] * 3


@pytest.mark.usefixtures("without_engine")
def test_what_finished_before_the_repeated_stage_stands_as_it_is(stages, settings, monkeypatch):
    run(settings)
    monkeypatch.setattr(prepare, "prepare_fingerprint", lambda config: "other raw data")
    again = rlhf_pipeline(settings, PipelineInputs(run="one", repeat_from="evaluate"))
    assert stages.calls == [*EVERY_STAGE, "evaluate", "promote"]
    assert [timing.reused for timing in again.timings] == [True] * 5 + [False] * 2


@pytest.mark.usefixtures("without_engine")
def test_an_unfinished_stage_before_the_repeated_one_is_done(stages, settings):
    stages.failures["policy"] = DataError("no rows")
    with pytest.raises(DataError):
        run(settings)
    rlhf_pipeline(settings, PipelineInputs(run="one", repeat_from="evaluate"))
    assert stages.calls == EVERY_STAGE[:5] + EVERY_STAGE[4:]


@pytest.mark.usefixtures("without_engine")
def test_a_run_cannot_be_resumed_with_other_settings(stages, settings, config_path):
    run(settings)
    other = RunSettings(file=config_path, overrides=("policy.kl_coef=0.5",))
    with pytest.raises(ConfigError, match=r"changed: policy\.kl_coef"):
        run(other)


@pytest.fixture
def prepare_again(stages, monkeypatch):
    """Let the folder of prepared data hold another version from now on."""

    def run():
        changed = stages.read_splits(stages.directory).model_copy(update={"sha256": "f" * 64})
        monkeypatch.setattr(dataset, "read_splits", lambda directory: changed)
        monkeypatch.setattr(prepare, "prepare_data", lambda config: changed)

    return run


@pytest.mark.usefixtures("without_engine")
def test_a_dataset_prepared_again_meanwhile_is_refused(stages, settings, prepare_again):
    run(settings)
    prepare_again()
    with pytest.raises(DataError, match="prepared again"):
        run(settings)


@pytest.mark.usefixtures("without_engine")
def test_a_stage_alone_refuses_data_that_its_run_did_not_prepare(stages, settings, prepare_again):
    run(settings)
    prepare_again()
    with pytest.raises(DataError, match="repeat_from: prepare"):
        sft_stage(settings, SftInputs(run="one", force=True))
    rlhf_pipeline(settings, PipelineInputs(run="one", repeat_from="prepare"))
    assert sft_stage(settings, SftInputs(run="one", force=True))


def test_two_processes_cannot_work_on_one_stage(stages, settings):
    from rlhf_flows.engine.runs.folder import open_run
    from rlhf_flows.engine.runs.locks import hold_stage

    context = open_run(settings.config, "one")
    with hold_stage(context, "sft"), pytest.raises(CheckpointError, match="another process"):
        run(settings)


def test_a_run_id_that_leaves_the_folder_is_refused(stages, settings):
    with pytest.raises(ConfigError, match="plain name"):
        run(settings, "../elsewhere")


@pytest.mark.usefixtures("without_engine")
def test_a_policy_that_an_earlier_build_returned_as_a_model_alone_is_kept(stages, settings):
    before = run(settings)
    saved = before.directory / "policy/result.json"
    saved.write_text(before.policy.model_dump_json(indent=2))
    again = run(settings)
    assert stages.calls == [*EVERY_STAGE, "promote"]
    assert again.policy == again.stages["policy"].model == before.policy
    assert again.stages["policy"].decision == before.stages["policy"].decision
