"""People's votes on an evaluation's answers: the judge's win rate corrected by them."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlhf_core.adapters.registry.looks import fetch_votes, take_round
from rlhf_core.config import PipelineConfig
from rlhf_core.evaluation.corrected import MIN_LABELS, corrected_mean
from rlhf_core.evaluation.gates import WIN_RATE_CORRECTED
from rlhf_core.evaluation.people import VotedPair, people_outcomes
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import DatasetSplits, EvaluationReport, Prompt, share_of_round
from rlhf_core.stages.evaluation.compare import topics_of
from rlhf_core.stages.evaluation.verdict import metric_plans
from rlhf_core.storage.records import read_records


def corrected_by_people(
    config: PipelineConfig, splits: DatasetSplits, report: EvaluationReport
) -> EvaluationReport:
    """Return the report with ``policy/win_rate_corrected``, if enough people voted by now.

    Each time votes came in since the last decision with votes is on record as one more, before the
    estimate is known, and has to be surer: waiting for the votes that please is no way to pass.
    """
    metrics = {name: one for name, one in report.metrics.items() if name != WIN_RATE_CORRECTED}
    report = report.model_copy(update={"metrics": metrics, "people": None})
    if report.look is None or report.samples is None:
        return report
    with tempfile.TemporaryDirectory() as folder:
        files = fetch_votes(report.look.entry, Path(folder))
        voted = [pair for file in files for pair in read_records(file, VotedPair)]
    if not voted:
        return report
    rows = read_records(report.samples, ComparedAnswer)
    outcomes, people = people_outcomes(rows, voted)
    prompts = [Prompt(prompt_id=row.prompt_id, prompt=row.prompt, tags=row.tags) for row in rows]
    topics, _ = topics_of(config, splits, prompts)
    units = np.arange(len(rows)) if topics is None else topics
    if len(np.unique(units[~np.isnan(outcomes)])) < MIN_LABELS:
        return report.model_copy(update={"people": people})
    people = people.model_copy(update={"round": take_round(report.look.entry)})
    plan = metric_plans(config, "policy", look=report.look, topics=topics)(WIN_RATE_CORRECTED)
    plan = replace(plan, share=plan.share * share_of_round(people.round))
    estimate = corrected_mean([row.won for row in rows], outcomes, plan)
    metrics |= {WIN_RATE_CORRECTED: estimate}
    return report.model_copy(update={"metrics": metrics, "people": people})
