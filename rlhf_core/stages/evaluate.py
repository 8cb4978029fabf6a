"""Held-out measurement of each stage's model, and its gates."""

import time
from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np

from rlhf_core.adapters.registry.looks import finish_look, measured_before, take_look, votes_digest
from rlhf_core.adapters.tracking.tracking import StageRun
from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.keys import conversation_key, dialogue_key
from rlhf_core.errors import MissingMetricError
from rlhf_core.evaluation.comparison import policy_metrics
from rlhf_core.evaluation.gates import decide
from rlhf_core.evaluation.noise_ceiling import noise_ceiling
from rlhf_core.evaluation.preference_metrics import (
    accuracy_slices,
    fit_length_rival,
    preference_metrics,
)
from rlhf_core.evaluation.slices import policy_breakdown, slices_over_champion
from rlhf_core.feedback.ballots import FOLDER
from rlhf_core.models import load_causal
from rlhf_core.schema import (
    DatasetSplits,
    Demonstration,
    EvaluationReport,
    Look,
    ModelRef,
    Prompt,
    RunContext,
    StageResult,
)
from rlhf_core.stages.evaluation.best_of_k import with_best_of_k
from rlhf_core.stages.evaluation.compare import compare_answers, topics_of, write_samples
from rlhf_core.stages.evaluation.drawn import sampling
from rlhf_core.stages.evaluation.independence import (
    doubts_about_champion,
    doubts_about_data,
    require_independent_judge,
    require_own_reference,
    require_topics,
)
from rlhf_core.stages.evaluation.judge_check import check_judge
from rlhf_core.stages.evaluation.judging import Panel
from rlhf_core.stages.evaluation.people import corrected_by_people
from rlhf_core.stages.evaluation.scored_pairs import (
    heldout_pairs,
    score_pairs,
    warn_of_length_alone,
    with_tags,
)
from rlhf_core.stages.evaluation.suites import FOLDER as SUITES
from rlhf_core.stages.evaluation.suites import check_suites, with_suites
from rlhf_core.stages.evaluation.verdict import (
    conclude,
    evaluation_run,
    gates_asked,
    metric_plans,
)
from rlhf_core.stages.models.examples import TurnOf, row_counts, tokenize_records
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import response_logprobs
from rlhf_core.statistics.clusters import numbered
from rlhf_core.statistics.intervals import estimate_mean, estimate_ratio
from rlhf_core.storage.records import iterate_records, read_records


def evaluate_sft(
    config: PipelineConfig,
    splits: DatasetSplits,
    model: ModelRef,
    context: RunContext,
    *,
    run: StageRun | None = None,
) -> StageResult:
    """Measure SFT on held-out demonstrations, apply its gates, record the verdict.

    ``sft/heldout_nll`` is in nats per response token, EOS included; ``sft/response_nll`` in nats
    per response.

    Args:
        config: settings of the run.
        splits: dataset version.
        model: the SFT model.
        context: where the run keeps its files.
        run: the open run of the training stage; None opens one of its own.
    """
    started = time.monotonic()
    with evaluation_run(config, splits, context, run, sft=model) as run:
        renderer = model_renderer(model.path)
        examples = list(
            tokenize_records(
                iterate_records(splits.demonstrations_heldout, Demonstration),
                lambda row: TurnOf(dialogue_key(row.prompt), renderer.demonstration(row)),
                length=attrgetter("tokens.num_tokens"),
                max_length=config.model.max_length,
                filtered=context.stage_directory("sft") / "set-aside-evaluation.jsonl",
            )
        )
        logprobs = response_logprobs(
            load_causal(model.path, device=config.model.device),
            [example.tokens.prompt_ids for example in examples],
            [example.tokens.response_ids for example in examples],
            budget=config.evaluation.micro_batch_tokens,
        )
        nll = np.array([-float(row.double().sum()) for row in logprobs])
        lengths = np.array([float(len(row)) for row in logprobs])
        plans = metric_plans(config, "sft")
        dialogues = numbered(example.dialogue for example in examples)
        per_token = plans("sft/heldout_nll").by(dialogues)
        metrics = {
            "sft/heldout_nll": estimate_ratio(nll, lengths, per_token),
            "sft/response_nll": estimate_mean(nll, plans("sft/response_nll").by(dialogues)),
        }
        report = EvaluationReport(
            stage="sft",
            model=model,
            metrics=metrics,
            rows=row_counts(context.stage_directory("sft")),
        )
        return conclude(config, "sft", report, run, started)


def evaluate_reward(
    config: PipelineConfig,
    splits: DatasetSplits,
    model: ModelRef,
    context: RunContext,
    *,
    role: Literal["reward", "judge"] = "reward",
    run: StageRun | None = None,
) -> StageResult:
    """Measure a reward model, or the judge, on the held-out pairs of its half; apply its gates.

    Beside it stands a rival that knows the lengths alone, fitted on the same half's training pairs.

    Args:
        config: settings of the run.
        splits: dataset version.
        model: the reward model.
        context: where the run keeps its files.
        role: ``judge`` is measured on the judge's half, its metrics are called ``judge/...``.
        run: the open run of the training stage; None opens one of its own.
    """
    started = time.monotonic()
    is_judge = role == "judge"
    with evaluation_run(config, splits, context, run, **{role: model}) as run:
        renderer = model_renderer(model.path)
        pairs_of = partial(heldout_pairs, config, renderer, context, role)
        train = pairs_of(splits.judge_train if is_judge else splits.reward_train)
        lengths = np.array([(len(p.tokens.chosen_ids), len(p.tokens.rejected_ids)) for p in train])
        rival = fit_length_rival(*lengths.T)
        heldout = list(pairs_of(splits.judge_heldout if is_judge else splits.reward_heldout))
        pairs = score_pairs(config, model, heldout)
        plans = metric_plans(config, role)
        metrics = preference_metrics(
            pairs, rival, prefix=role, bins=config.evaluation.num_calibration_bins, plans=plans
        )
        warn_of_length_alone(role, metrics)
        records = with_tags([pair.record for pair in heldout], splits)
        ceiling = noise_ceiling(records, pairs.clusters, plans(f"{role}/noise_ceiling"))
        metrics |= {f"{role}/noise_ceiling": ceiling} if ceiling else {}
        slices = accuracy_slices(pairs, records, plans(f"{role}/heldout_accuracy"))
        report = EvaluationReport(
            stage=role,
            model=model,
            metrics=metrics,
            breakdown={
                group: {f"{role}/heldout_accuracy": accuracy} for group, accuracy in slices.items()
            },
            rows=row_counts(context.stage_directory(role)),
        )
        return conclude(config, role, with_best_of_k(config, report, plans), run, started)


def evaluate_policy(  # noqa: PLR0913 - four models meet here
    config: PipelineConfig,
    splits: DatasetSplits,
    *,
    policy: ModelRef,
    sft: ModelRef,
    reward: ModelRef | None,
    judge: ModelRef,
    champion: ModelRef | None,
    context: RunContext,
    run: StageRun | None = None,
) -> StageResult:
    """Compare the policy with SFT and the champion on held-out prompts and apply the gates.

    The judge decides who wins; one that did not pass its own gates cannot promote anybody. The
    training reward model is only watched, for the gap between the two. A gold rater, where
    configured, appears in the report and in no gate.

    Args:
        config: settings of the run.
        splits: dataset version.
        policy: the model that wants to be champion.
        sft: its KL reference, and what it has to beat where there is no champion yet.
        reward: what it was optimised against; None after DPO.
        judge: reward model trained on the other half of the preferences, or one from elsewhere
            that ``evaluation.judge`` names, or several.
        champion: what is in use and has to be beaten; None where nothing is.
        context: where the run keeps its files.
        run: an open run to log to; None opens the evaluation's own.

    Raises:
        RegistryError: the judge is what the policy was optimised against, or was never one; or
            the policy was optimised from another SFT model.
        DataError: topics are to be those of a tag that no prompt has.
    """
    started = time.monotonic()
    require_independent_judge(judge, policy, reward, splits)
    require_own_reference(policy, sft)
    require_topics(config, splits)
    suites = check_suites(config)
    upstream = {"policy": policy, "sft": sft, "judge": judge}
    upstream |= {"reward": reward} if reward else {}
    compared = upstream | ({"champion": champion} if champion else {})
    with evaluation_run(config, splits, context, run, **compared) as run:
        directory = context.stage_directory("evaluate")
        report = _look(config, splits, compared, directory, run)
        report = with_suites(config, suites, compared, report, directory)
        report = report.model_copy(
            update={
                "model": policy,
                "rows": row_counts(context.stage_directory("policy"), directory),
                "champion": champion.uri if champion else None,
                "judge": judge.uri,
            }
        )
        members = [one for model in upstream.values() for one in model.members or (model,)]
        doubts = doubts_about_data(splits, members)
        doubts += doubts_about_champion(policy, champion)
        result = conclude(config, "policy", report, run, started, judge=judge, doubts=doubts)
        for folder in (FOLDER, SUITES):
            if (directory / folder).is_dir():
                run.log_artifact(directory / folder, f"evaluation/{folder}")
        if report.look:
            finish_look(report.look, run)
    return result.model_copy(update={"stage": "evaluate"})


def _look(
    config: PipelineConfig,
    splits: DatasetSplits,
    models: Mapping[str, ModelRef],
    directory: Path,
    run: StageRun,
) -> EvaluationReport:
    """Put a look on record, then measure; what the same look measured before, stands.

    The answers may be drawn again as they were, to ask more of them; drawn by another seed, or
    more of them, they would be a second chance for the same weights. Votes of people on them are
    new evidence.
    """
    heldout = read_records(splits.prompts_heldout, Prompt)
    look = take_look(
        config.project,
        splits.prompts_heldout,
        (conversation_key(prompt.prompt) for prompt in heldout),
        models={role: models[role] for role in ("policy", "judge", "champion") if role in models},
        sampling=sampling(config),
        run=run,
    )
    samples = directory / "samples.jsonl"
    report = _standing(config, look, samples)
    if report is None:
        look = look.model_copy(update={"measured_by": None})
        report = _measured(config, splits, models, look, samples)
    return corrected_by_people(config, splits, report)


def _standing(config: PipelineConfig, look: Look, samples: Path) -> EvaluationReport | None:
    """Return what was measured at this look before, if that is what is to be decided from.

    It is where other answers would be drawn now, as by an engine elsewhere they always are, and
    where people have voted on those answers and neither the gates nor ``evaluation.best_of_n`` ask
    anything else of them.

    Raises:
        MissingMetricError: other answers would be drawn, and gates ask of those on record what was
            not measured then, by an earlier build or for other gates.
    """
    if look.measured_by is None:
        return None
    drawn_alike = look.sampling == sampling(config)
    other_answers = not drawn_alike or config.policy.rollouts.elsewhere
    if not other_answers and votes_digest(look.entry) is None:
        return None
    report = measured_before(look, samples)
    try:
        decide(gates_asked(config, "policy", look, report.people), report)
    except MissingMetricError as error:
        if not other_answers:
            return None
        advice = (
            "an engine elsewhere does not draw the same answers again: ask of these what was "
            "measured, or renew the held-out prompts"
            if drawn_alike
            else "evaluate with the same, and those answers are measured again"
        )
        raise MissingMetricError(
            f"{look.entry}: these weights were measured with {look.sampling}; {advice}: {error}"
        ) from error
    if other_answers:
        return report
    wanted = config.evaluation.best_of_n
    return report if wanted in (None, report.best_of_n) else None


def _measured(
    config: PipelineConfig,
    splits: DatasetSplits,
    models: Mapping[str, ModelRef],
    look: Look,
    samples: Path,
) -> EvaluationReport:
    directory = samples.parent
    panel = Panel(config, models["judge"], directory)
    check = check_judge(config, splits, panel, models.get("reward"), look)
    measured = compare_answers(config, splits, models, panel, directory)
    write_samples(samples, measured)
    topics, units = topics_of(config, splits, measured.prompts)
    plans = metric_plans(config, "policy", look=look, topics=topics)
    return EvaluationReport(
        stage="policy",
        model=models["policy"],
        metrics=policy_metrics(measured, config.evaluation.monitors, plans) | check.metrics,
        breakdown=policy_breakdown(measured, plans),
        slices_over_champion=slices_over_champion(measured, plans),
        samples=samples,
        best_of_n=config.evaluation.best_of_n,
        look=look,
        units=units,
        judge_accuracy=check.accuracy,
        judge_ceiling=check.ceiling,
    )
