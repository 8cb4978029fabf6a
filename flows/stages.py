"""One flow per stage, so that each shows in Prefect, has a deployment and can be rerun alone.

A stage finds its inputs, runs once for the same inputs, and hands on a record. Formulas and
thresholds are the core's.
"""

from prefect import flow

from rlhf_core.config import config_digest
from rlhf_core.errors import RegistryError
from rlhf_core.schema import DatasetSplits, ModelRef, StageResult
from rlhf_core.stages.promote import Promotion
from rlhf_flows.engine import bindings, feedback_bindings
from rlhf_flows.engine.events import announce
from rlhf_flows.engine.inputs import (
    EvaluateInputs,
    PolicyInputs,
    PrepareInputs,
    PromoteInputs,
    RewardInputs,
    SftInputs,
)
from rlhf_flows.engine.references import (
    check_roles,
    find_champion,
    find_dataset,
    find_judge,
    find_model,
)
from rlhf_flows.engine.run_folder import name_of_run, open_context
from rlhf_flows.engine.run_settings import RunSettings
from rlhf_flows.engine.runs import saved_result
from rlhf_flows.engine.work import Work, carry_out


@flow(name="rlhf-prepare", flow_run_name=name_of_run)
def prepare_stage(settings: RunSettings | None, inputs: PrepareInputs) -> DatasetSplits:
    """Validate the raw data and publish a dataset version."""
    config, context = open_context(settings, inputs.run)
    before = saved_result(context, "prepare", DatasetSplits)
    still_there = before is None or before.report.is_file()
    return carry_out(
        Work(config, context, "prepare", DatasetSplits, force=inputs.force, reuse=still_there),
        {"made_from": bindings.prepare_fingerprint(config)},
        lambda observer: bindings.prepare_data(config),
    )


@flow(name="rlhf-sft", flow_run_name=name_of_run)
def sft_stage(settings: RunSettings | None, inputs: SftInputs) -> StageResult:
    """Teach the base model format and tone from demonstrations."""
    config, context = open_context(settings, inputs.run)
    splits = find_dataset(config, context, inputs.dataset)
    return carry_out(
        Work(config, context, "sft", StageResult, force=inputs.force),
        {
            "settings": config_digest(config),
            "dataset": splits.sha256,
            "base": bindings.base_digest(config),
        },
        lambda observer: bindings.train_sft(config, splits, context, observer),
    )


@flow(name="rlhf-reward", flow_run_name=name_of_run)
def reward_stage(settings: RunSettings | None, inputs: RewardInputs) -> StageResult:
    """Train the reward model, or the judge, on its own half of the preferences."""
    check_roles(inputs)
    config, context = open_context(settings, inputs.run)
    splits = find_dataset(config, context, inputs.dataset)
    sft = find_model(config, context, "sft", inputs.sft)
    return carry_out(
        Work(config, context, inputs.role, StageResult, force=inputs.force),
        {"settings": config_digest(config), "dataset": splits.sha256, "sft": sft.sha256},
        lambda observer: bindings.train_reward(config, splits, sft, context, inputs.role, observer),
    )


@flow(name="rlhf-policy", flow_run_name=name_of_run)
def policy_stage(settings: RunSettings | None, inputs: PolicyInputs) -> ModelRef:
    """Optimise the policy: PPO against the reward model, or DPO straight from the pairs."""
    check_roles(inputs)
    config, context = open_context(settings, inputs.run)
    splits = find_dataset(config, context, inputs.dataset)
    sft = find_model(config, context, "sft", inputs.sft)
    reward = (
        find_model(config, context, "reward", inputs.reward)
        if config.policy.needs_reward_model
        else None
    )
    return carry_out(
        Work(config, context, "policy", ModelRef, force=inputs.force),
        {
            "settings": config_digest(config),
            "dataset": splits.sha256,
            "sft": sft.sha256,
            "reward": reward.sha256 if reward else "none",
        },
        lambda observer: bindings.train_policy(config, splits, sft, reward, context, observer),
    )


@flow(name="rlhf-evaluate", flow_run_name=name_of_run)
def evaluate_stage(settings: RunSettings | None, inputs: EvaluateInputs) -> StageResult:
    """Compare the policy with SFT and the champion on held-out prompts, and apply the gates."""
    check_roles(inputs)
    config, context = open_context(settings, inputs.run)
    splits = find_dataset(config, context, inputs.dataset)
    policy = find_model(config, context, "policy", inputs.policy)
    champion = find_champion(config, policy)
    models = {
        "policy": policy,
        "sft": find_model(config, context, "sft", inputs.sft),
        "judge": find_judge(config, context, champion, inputs.judge),
    }
    models |= {"champion": champion} if champion else {}
    if config.policy.needs_reward_model:
        models["reward"] = find_model(config, context, "reward", inputs.reward)
    # Votes of people that came in since are new evidence: a finished evaluation decides again.
    votes = feedback_bindings.votes_digest(saved_result(context, "evaluate", StageResult))
    return carry_out(
        Work(config, context, "evaluate", StageResult, force=inputs.force),
        {
            "settings": config_digest(config),
            "dataset": splits.sha256,
            **{role: model.sha256 for role, model in models.items()},
            **({"votes": votes} if votes else {}),
        },
        lambda observer: bindings.evaluate_policy(config, splits, models, context),
    )


@flow(name="rlhf-promote", flow_run_name=name_of_run)
def promote_stage(settings: RunSettings | None, inputs: PromoteInputs) -> Promotion:
    """Make the run's evaluated policy the champion, if its gates, and who was asked, said so."""
    config, context = open_context(settings, inputs.run)
    evaluated = saved_result(context, "evaluate", StageResult)
    if evaluated is None:
        raise RegistryError(
            f"run {context.run_id} has no evaluation to promote from: "
            f"run `rlhf evaluate CONFIG --run-id {context.run_id}` first"
        )
    asked_for = config.promotion.approval == "person"
    bindings.require_approval(evaluated.model.uri, asked_for=asked_for)
    promotion = carry_out(
        Work(config, context, "promote", Promotion, force=inputs.force, reuse=False),
        {"model": evaluated.model.sha256, "verdict": evaluated.decision.verdict},
        lambda observer: bindings.promote_policy(config, evaluated, context),
    )
    if promotion.moved:
        announce("rlhf.promoted", context, model=promotion.model, champion=promotion.champion)
    return promotion
