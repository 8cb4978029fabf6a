"""The whole pipeline, readable as the architecture diagram.

raw data -> prepare -> SFT -> gate -> reward model + judge -> gate -> policy -> gate -> champion
"""

from prefect import flow
from prefect.states import Completed

from rlhf_core.adapters.registry.access import check_access
from rlhf_core.schema import DatasetSplits, StageResult
from rlhf_core.stages.promote import Promotion
from rlhf_flows.engine.artifacts import file_report, show_outcome
from rlhf_flows.engine.flow_results import PipelineResult
from rlhf_flows.engine.inputs import (
    EvaluateInputs,
    PipelineInputs,
    PolicyInputs,
    PrepareInputs,
    PromoteInputs,
    RewardInputs,
    SftInputs,
)
from rlhf_flows.engine.progress import Progress, passed
from rlhf_flows.engine.references import dataset_reference
from rlhf_flows.engine.runs.cleaning import retain
from rlhf_flows.engine.runs.in_prefect import is_deployed, name_of_run, open_context
from rlhf_flows.engine.runs.locks import in_use
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.promotion import ask_person
from rlhf_flows.stages import (
    evaluate_stage,
    policy_stage,
    prepare_stage,
    promote_stage,
    reward_stage,
    sft_stage,
)


@flow(name="rlhf-pipeline", flow_run_name=name_of_run)
def rlhf_pipeline(settings: RunSettings | None, inputs: PipelineInputs) -> PipelineResult:
    """Preference data in, champion or a reasoned refusal out. A gate that says no ends the run."""
    config, context = open_context(settings, inputs.run)
    if is_deployed():
        check_access(config.project)
    with in_use(context):
        run = Progress(settings, config, context)
        run.repeat_from(inputs.repeat_from)
        result = conclude(follow_diagram(run))
    retain(config, context)
    return result


def follow_diagram(run: Progress) -> PipelineResult:
    """Run stage after stage, each from references to what the ones before it made."""
    config, here = run.config, {"run": run.reference}

    splits = run.stage("prepare", prepare_stage, DatasetSplits, PrepareInputs(**here))
    here["dataset"] = dataset_reference(splits)

    sft = run.stage("sft", sft_stage, StageResult, SftInputs(**here))
    if not passed(sft):
        return run.ended(splits, sft)
    here["sft"] = sft.model.uri

    judging = RewardInputs(**here, role="judge")
    if config.policy.needs_reward_model:
        reward = run.stage("reward", reward_stage, StageResult, RewardInputs(**here))
        if not passed(reward):
            return run.ended(splits, reward)
        here["reward"] = reward.model.uri

    judge = run.stage("judge", reward_stage, StageResult, judging)
    if not passed(judge):
        return run.ended(splits, judge)

    policy = run.stage("policy", policy_stage, StageResult, PolicyInputs(**here))

    # No judge is named: that of the champion's release decides, and without a champion this run's.
    comparison = EvaluateInputs(**here, policy=policy.model.uri)
    evaluated = run.stage("evaluate", evaluate_stage, StageResult, comparison)
    if not passed(evaluated):
        return run.ended(splits, evaluated)

    refusal = ask_person(config, evaluated, run.context)
    if refusal is not None:
        return run.ended(splits, evaluated, held=refusal)
    champion = run.stage("promote", promote_stage, Promotion, PromoteInputs(run=here["run"]))
    return run.ended(splits, evaluated, champion)


def conclude(result: PipelineResult) -> PipelineResult:
    """Write the run's page and, where a worker runs this, name the outcome in the Prefect UI."""
    decided = list(result.stages.values())[-1]
    report, report_url = file_report(result.directory, decided)
    result = result.model_copy(update={"report": report, "report_url": report_url})
    show_outcome(result)
    if is_deployed() and result.verdict != "PROMOTE":
        # A refusal is a result and no failure, but it should not look like a promotion either.
        message = "; ".join(result.reasons)
        return Completed(name=result.verdict, message=message, data=result)  # type: ignore[return-value]
    return result
