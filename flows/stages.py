"""One flow per stage, so that each shows in Prefect, has a deployment and can be rerun alone.

A stage finds its inputs, runs once for the same inputs, and returns a record. Formulas and
thresholds are the core's. What needs torch is imported where it is called: whoever only names a
flow, as a deployment or the pipeline's own process does, does not pay for it.
"""

from prefect import flow

from rlhf_core.adapters.registry import approval
from rlhf_core.errors import RegistryError
from rlhf_core.ports import Observer
from rlhf_core.schema import DatasetSplits, StageResult
from rlhf_core.stages import promote
from rlhf_core.stages.promote import Promotion
from rlhf_flows.engine.events import announce
from rlhf_flows.engine.inputs import (
    EvaluateInputs,
    PolicyInputs,
    PrepareInputs,
    PromoteInputs,
    RewardInputs,
    SftInputs,
)
from rlhf_flows.engine.runs.in_prefect import name_of_run
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.engine.runs.stage_folder import saved_result
from rlhf_flows.engine.stage import open_model_stage, open_stage, run_stage


@flow(name="rlhf-prepare", flow_run_name=name_of_run)
def prepare_stage(settings: RunSettings | None, inputs: PrepareInputs) -> DatasetSplits:
    """Validate the raw data and publish a dataset version."""
    from rlhf_core.stages.evaluation.held_out import warn_of_too_few
    from rlhf_core.stages.prepare import prepare_data

    stage = open_stage("prepare", settings, inputs)
    before = saved_result(stage.context, "prepare", DatasetSplits)
    splits = run_stage(
        stage,
        DatasetSplits,
        lambda observer: prepare_data(stage.config),
        reuse=before is None or before.report.is_file(),
    )
    warn_of_too_few(stage.config, splits)
    return splits


@flow(name="rlhf-sft", flow_run_name=name_of_run)
def sft_stage(settings: RunSettings | None, inputs: SftInputs) -> StageResult:
    """Teach the base model format and tone from demonstrations."""
    from rlhf_core.stages.sft import train_sft

    stage = open_model_stage("sft", settings, inputs)
    return run_stage(
        stage,
        StageResult,
        lambda observer: train_sft(stage.config, stage.splits, stage.context, observer),
    )


@flow(name="rlhf-reward", flow_run_name=name_of_run)
def reward_stage(settings: RunSettings | None, inputs: RewardInputs) -> StageResult:
    """Train the reward model, or the judge, on its own half of the preferences."""
    stage = open_model_stage(inputs.role, settings, inputs)

    def train(observer: Observer) -> StageResult:
        from rlhf_core.stages.reward import train_reward

        sft = stage.models["sft"]
        return train_reward(stage.config, stage.splits, sft, stage.context, inputs.role, observer)

    return run_stage(stage, StageResult, train)


@flow(name="rlhf-policy", flow_run_name=name_of_run)
def policy_stage(settings: RunSettings | None, inputs: PolicyInputs) -> StageResult:
    """Optimise the policy: PPO against the reward model, or DPO straight from the pairs."""
    stage = open_model_stage("policy", settings, inputs)

    def train(observer: Observer) -> StageResult:
        from rlhf_core.stages.policy import train_policy

        models = stage.models
        return train_policy(
            stage.config,
            stage.splits,
            models["sft"],
            models.get("reward"),
            stage.context,
            observer,
            scorers=stage.scorers,
            judge=models.get("judge"),
        )

    return run_stage(stage, StageResult, train)


@flow(name="rlhf-evaluate", flow_run_name=name_of_run)
def evaluate_stage(settings: RunSettings | None, inputs: EvaluateInputs) -> StageResult:
    """Compare the policy with SFT and the champion on held-out prompts, and apply the gates."""
    stage = open_model_stage("evaluate", settings, inputs)

    def evaluate(observer: Observer) -> StageResult:
        from rlhf_core.stages.evaluate import evaluate_policy

        models = stage.models
        return evaluate_policy(
            stage.config,
            stage.splits,
            policy=models["policy"],
            sft=models["sft"],
            reward=models.get("reward"),
            judge=models["judge"],
            champion=models.get("champion"),
            context=stage.context,
        )

    return run_stage(stage, StageResult, evaluate)


@flow(name="rlhf-promote", flow_run_name=name_of_run)
def promote_stage(settings: RunSettings | None, inputs: PromoteInputs) -> Promotion:
    """Make the run's evaluated policy the champion, if its gates, and who was asked, said so."""
    stage = open_stage("promote", settings, inputs)
    run = stage.context.run_id
    evaluated = saved_result(stage.context, "evaluate", StageResult)
    if evaluated is None:
        raise RegistryError(
            f"run {run} has no evaluation to promote from: "
            f"run `rlhf evaluate CONFIG --run-id {run}` first"
        )
    if evaluated.verdict == "PROMOTE":  # what the gates stop needs nobody's word
        asked_for = stage.config.promotion.approval == "person"
        approval.require_approval(evaluated.model.uri, asked_for=asked_for)
    promotion = run_stage(
        stage,
        Promotion,
        lambda observer: promote.promote_policy(stage.config, evaluated, stage.context),
        reuse=False,
    )
    if promotion.moved:
        announce("rlhf.promoted", stage.context, model=promotion.model, champion=promotion.champion)
    return promotion
