"""From a report to a recorded verdict: what every evaluation does in the same way."""

import csv
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

from rlhf_core.adapters.decision import JUDGED_BY, record_decision, recorded_verdict
from rlhf_core.adapters.registry import find_version, upstream_uris
from rlhf_core.adapters.required_gates import APPLIED, applied_tag, required_gates
from rlhf_core.adapters.tracking import StageRun, open_run, stage_inputs
from rlhf_core.config import GateConfig, GatedStage, PipelineConfig
from rlhf_core.config.metric_names import CEILING, CORRECTED
from rlhf_core.dataprep.cleaning.near_dialogues import NEAR_DUPLICATES, require_tag
from rlhf_core.errors import RegistryError
from rlhf_core.evaluation.gates import decide, describe_look, gate_name, judge_estimate
from rlhf_core.evaluation.people import describe_votes
from rlhf_core.evaluation.suites import suite_results
from rlhf_core.schema import (
    DatasetSplits,
    EvaluationReport,
    Look,
    ModelRef,
    PeopleVotes,
    PromotionDecision,
    Prompt,
    RunContext,
    StageResult,
)
from rlhf_core.stages.determinism import derived_seed, take_cores
from rlhf_core.stages.preparation.report import ANNOTATORS
from rlhf_core.statistics.intervals import Plans, Resampling
from rlhf_core.statistics.resampling import Ints
from rlhf_core.storage.records import iterate_records

WIN_RATE_CORRECTED = f"policy/{CORRECTED}"
JUDGE_ACCURACY = "judge/heldout_accuracy"
JUDGE_CEILING = f"judge/{CEILING}"
MOST_UNJUDGED = 0.1
"""Pairs without a judge's word beyond this part are too many to decide by the others."""


@contextmanager
def evaluation_run(
    config: PipelineConfig,
    splits: DatasetSplits,
    context: RunContext,
    run: StageRun | None,
    **models: ModelRef,
) -> Iterator[StageRun]:
    """The training stage's run, or one of the evaluation's own with its inputs on record."""
    if run is not None:
        yield run
        return
    take_cores()
    with open_run(config, context, "evaluate", inputs=stage_inputs(splits, **models)) as own:
        own.log_dataset(splits)
        yield own


def gates_asked(
    config: PipelineConfig,
    stage: GatedStage,
    look: Look | None = None,
    people: PeopleVotes | None = None,
) -> tuple[GateConfig, ...]:
    """Return the gates a model is held to: the run's and those its project requires.

    Args:
        config: settings of the run.
        stage: whose model is measured.
        look: at a set that was looked at before; each gate is then as much surer.
        people: whose votes correct the judge; their gate is surer each time they decide.
    """
    required = required_gates(config.project)
    return _surer(required.added_to(stage, config.gates_of(stage)), look, people)


def _surer(
    asked: tuple[GateConfig, ...], look: Look | None, people: PeopleVotes | None
) -> tuple[GateConfig, ...]:
    if look is None:
        return asked
    shares = {WIN_RATE_CORRECTED: look.share * people.share} if people else {}
    levels = [
        Resampling(gate.confidence, share=shares.get(gate.metric, look.share)).level
        for gate in asked
    ]
    return tuple(
        gate.model_copy(update={"confidence": level})
        for gate, level in zip(asked, levels, strict=True)
    )


def metric_plans(
    config: PipelineConfig,
    stage: GatedStage,
    *,
    look: Look | None = None,
    topics: Ints | None = None,
) -> Plans:
    """How each metric's interval is made: a gated one at the confidence of its gate.

    Args:
        config: settings of the run.
        stage: whose model is measured.
        look: at the held-out set; None where looks are not counted.
        topics: [n] number of each prompt's topic, which are resampled whole; None: prompts are.
    """
    settings, asked = config.evaluation, gates_asked(config, stage)
    needed = (settings.resamples_for(gate.confidence) for gate in asked)
    return Plans(
        default=Resampling(
            confidence=settings.confidence,
            num_resamples=max(settings.num_resamples, *needed, 0),
            seed=derived_seed(config.seed, "bootstrap"),
            share=look.share if look else 1.0,
            clusters=topics,
        ),
        confidences={gate.metric: gate.confidence for gate in asked},
    )


def conclude(  # noqa: PLR0913 - a verdict and all that it rests on
    config: PipelineConfig,
    stage: GatedStage,
    report: EvaluationReport,
    run: StageRun,
    started: float,
    judge: ModelRef | None = None,
    doubts: tuple[str, ...] = (),
) -> StageResult:
    """Apply the stage's gates and write the verdict down before anyone hears it."""
    doubts += _doubts_about(config, judge, report) if judge else ()
    required = required_gates(config.project)
    asked = required.added_to(stage, config.gates_of(stage))
    gates = _surer(asked, report.look, report.people)
    beside = suite_results(config.evaluation.suites, [gate.metric for gate in gates], report)
    decision = decide(gates, report, doubts=doubts, promotion=config.promotion, beside=beside)
    decision = _with_look(_marked(decision, required.of_stage(stage)), report)
    known = judge is not None and judge.kind == "scalar"
    record_decision(
        decision,
        report,
        run=run,
        upstream={"judge": judge} if judge and known else {},
        more_tags={APPLIED: applied_tag(asked)}
        | ({JUDGED_BY: judge.uri} if judge and not known else {}),
    )
    return StageResult(
        stage=stage,
        model=report.model,
        report=report,
        decision=decision,
        seconds=time.monotonic() - started,
        tracking_url=run.url,
    )


def _marked(decision: PromotionDecision, required: tuple[GateConfig, ...]) -> PromotionDecision:
    """Say of each gate that the project requires it, where it does."""
    names = {gate_name(gate) for gate in required}
    results = tuple(
        result.model_copy(update={"rule": f"{result.rule}, required by the project"})
        if result.gate in names
        else result
        for result in decision.results
    )
    return decision.model_copy(update={"results": results})


def _with_look(decision: PromotionDecision, report: EvaluationReport) -> PromotionDecision:
    """Say which look it was, where it was not the first or not a new one, and whose votes count."""
    said, look = [], report.look
    if look is not None and look.measured_by is not None:
        said.append(
            f"the same weights were measured on these held-out prompts before ({look.entry}, "
            f"{look.sampling}); that measurement stands"
            + ("" if report.people else ", another seed or size is no new evidence")
        )
    if report.people is not None:
        said.append(describe_votes(report.people))
    if look is not None and look.number > 1:
        said.append(describe_look(look))
    reasons = (*decision.reasons, *(f"{decision.verdict}: {text}." for text in said))
    return decision.model_copy(update={"reasons": reasons})


def require_topics(config: PipelineConfig, splits: DatasetSplits) -> None:
    """Refuse an evaluation by topics of a tag that no prompt has, before hours go into one.

    Raises:
        DataError: says which tags there are.
    """
    key = config.evaluation.topics
    if key is None or key == NEAR_DUPLICATES:
        return
    files = (splits.prompts_heldout, splits.prompts_train)
    require_tag(chain.from_iterable(iterate_records(file, Prompt) for file in files), key)


def require_independent_judge(
    judge: ModelRef, policy: ModelRef | None, reward: ModelRef | None, splits: DatasetSplits
) -> None:
    """Refuse a judge that the policy was optimised against, or that was not trained as one.

    Args:
        judge: who is to decide.
        policy: what is judged; the registry knows what it was optimised against. None: one that
            is in training.
        reward: the reward model that this evaluation was given; None after DPO.
        splits: an AI judge whose votes are among the data is what the policy was optimised against.

    Raises:
        RegistryError: says which model it is and what to do.
    """
    optimised = {reward.uri: reward.sha256} if reward else {}
    if policy is not None and policy.registered:
        used = upstream_uris(policy.uri).get("reward")
        optimised |= {used: find_version(used).tags.get("rlhf.sha256", "")} if used else {}
    for one in judge.members or (judge,):
        for uri, sha256 in optimised.items():
            if one.sha256 == sha256:
                whose = policy.uri if policy else "the policy"
                raise RegistryError(
                    f"the judge {one.uri} is {uri}, the reward model {whose} was optimised "
                    "against; its word proves nothing. Give a judge: "
                    "`rlhf reward CONFIG --role judge`"
                )
        if one.kind == "endpoint" and one.uri in _voters(splits):
            raise RegistryError(
                f"the judge {one.uri} voted on pairs of {splits.directory}, which the policy "
                "learns from: its word on what it rewarded proves nothing. Name another in "
                f"evaluation.judge, or leave its votes out (data.votes.exclude: [{one.uri}])"
            )
        _require_trained_as_judge(one)


def _voters(splits: DatasetSplits) -> set[str]:
    """Who voted on the dataset's pairs."""
    path = splits.directory / ANNOTATORS
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {row["annotator"] for row in csv.DictReader(file)}


def _require_trained_as_judge(judge: ModelRef) -> None:
    if judge.registered:
        stage = find_version(judge.uri).tags.get("rlhf.stage")
        if stage != "judge":
            raise RegistryError(
                f"{judge.uri} was trained as {stage or 'something unknown'}, not as judge, on the "
                "half of the preferences that policies learn from. Give a judge: "
                "`rlhf reward CONFIG --role judge`"
            )


def require_own_reference(policy: ModelRef, sft: ModelRef) -> None:
    """Refuse to compare a policy with another SFT model than the one it set out from.

    A weak one would make any policy look good, and its KL would be from somewhere else.

    Raises:
        RegistryError: says which one belongs to the policy.
    """
    used = upstream_uris(policy.uri).get("sft") if policy.registered else None
    if used and find_version(used).tags.get("rlhf.sha256") != sft.sha256:
        raise RegistryError(
            f"{policy.uri} was optimised from {used} and cannot be compared with {sft.uri}; "
            f"give `--sft {used}`"
        )


def doubts_about_data(splits: DatasetSplits, models: Iterable[ModelRef]) -> tuple[str, ...]:
    """Say which models may have trained on prompts that ``splits`` holds out.

    What is held out depends on the rule of the split alone, not on the version of the dataset.
    """
    doubts = []
    for model in models:
        tags = find_version(model.uri).tags if model.registered else {}
        trained_on = tags.get("rlhf.dataset_sha256")
        same_rule = splits.split and tags.get("rlhf.dataset_split") == splits.split
        if trained_on is not None and trained_on != splits.sha256 and not same_rule:
            way_out = (
                " evaluation.judge names another." if tags.get("rlhf.stage") == "judge" else ""
            )
            doubts.append(
                f"{model.uri} was trained on dataset {trained_on[:12]}, which was split "
                f"by another rule than {splits.sha256[:12]}; what is held out here may "
                f"have trained it.{way_out}"
            )
    return tuple(doubts)


def doubts_about_champion(policy: ModelRef, champion: ModelRef | None) -> tuple[str, ...]:
    """Say so where the candidate is the champion over again: there is nothing to promote."""
    if champion is None or policy.sha256 != champion.sha256:
        return ()
    return (f"{policy.uri} has the very weights of the champion {champion.uri}.",)


def _doubts_about(
    config: PipelineConfig, judge: ModelRef, report: EvaluationReport
) -> tuple[str, ...]:
    """Why a judge's word does not count: it has not passed the gates that are asked of it.

    One from elsewhere, and several together, are asked what is asked of a judge's accuracy.
    """
    members = judge.members or (judge,)
    doubts = [doubt for one in members if one.kind == "scalar" for doubt in _unproven(one)]
    if all(one.kind == "scalar" for one in members):
        return tuple(doubts)
    asked = [gate for gate in gates_asked(config, "judge") if gate.metric == JUDGE_ACCURACY]
    if not asked:
        doubts.append(f"gates.judge asks nothing of {JUDGE_ACCURACY}, by which {judge.uri} counts.")
    for gate in asked:
        if report.judge_accuracy is None:
            doubts.append(f"the judge {judge.uri} was measured on no pair that people voted on.")
        elif (result := judge_estimate(gate, report.judge_accuracy)).verdict != "PROMOTE":
            doubts.append(f"the judge {judge.uri} does not pass its gate: {result.reason}")
    unjudged = report.metrics.get("policy/judge_unjudged")
    if unjudged is not None and unjudged.value > MOST_UNJUDGED:
        doubts.append(
            f"the judge {judge.uri} judged {1 - unjudged.value:.0%} of the pairs, less than "
            f"{1 - MOST_UNJUDGED:.0%}; samples.jsonl says why."
        )
    return tuple(doubts)


def _unproven(judge: ModelRef) -> tuple[str, ...]:
    verdict = recorded_verdict(judge.uri)[0] if judge.registered else None
    if verdict == "PROMOTE":
        return ()
    found = f"has verdict {verdict}" if verdict else "has passed no gate"
    return (f"the judge {judge.uri} {found}; a policy cannot be promoted on its word.",)
