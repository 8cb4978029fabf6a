"""From a report to a recorded verdict: what every evaluation does in the same way."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_core.adapters.registry.decision import JUDGED_BY, record_decision, recorded_verdict
from rlhf_core.adapters.registry.required_gates import APPLIED, applied_tag, required_gates
from rlhf_core.adapters.tracking.tracking import StageRun, open_run, stage_inputs
from rlhf_core.config import GateConfig, GatedStage, PipelineConfig
from rlhf_core.config.metric_names import CEILING
from rlhf_core.evaluation.gates import (
    decide,
    deciding_confidence,
    describe_look,
    gate_name,
    judge_estimate,
)
from rlhf_core.evaluation.people import describe_votes
from rlhf_core.evaluation.suites import suite_results
from rlhf_core.schema import (
    DatasetSplits,
    EvaluationReport,
    Look,
    ModelRef,
    PeopleVotes,
    PromotionDecision,
    RunContext,
    StageResult,
)
from rlhf_core.stages.models.determinism import derived_seed, take_cores
from rlhf_core.statistics.intervals import Plans, Resampling
from rlhf_core.statistics.resampling import Ints

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
    votes_round = people.round if people else None
    levels = [
        deciding_confidence(gate.metric, gate.confidence, look, votes_round) for gate in asked
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
    suites = suite_results(config.evaluation.suites, [gate.metric for gate in gates], report)
    decision = decide(
        gates, report, doubts=doubts, promotion=config.promotion, extra_results=suites
    )
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
            f"the judge {judge.uri} judged {1 - unjudged.value:.0%} of the pairs of one comparison "
            f"(with SFT, the champion or best-of-n), less than {1 - MOST_UNJUDGED:.0%}."
        )
    return tuple(doubts)


def _unproven(judge: ModelRef) -> tuple[str, ...]:
    verdict = recorded_verdict(judge.uri)[0] if judge.registered else None
    if verdict == "PROMOTE":
        return ()
    found = f"has verdict {verdict}" if verdict else "has passed no gate"
    return (f"the judge {judge.uri} {found}; a policy cannot be promoted on its word.",)
