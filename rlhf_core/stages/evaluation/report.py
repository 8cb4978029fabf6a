"""Gather what a run left behind, in its folder and in MLflow, into one HTML page."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rlhf_core.adapters.datasets.data_docs import INDEX, find_docs
from rlhf_core.adapters.registry.lineage import trace_lineage
from rlhf_core.adapters.tracking.curves import run_span
from rlhf_core.config import GATED_STAGES, PipelineConfig, config_digest
from rlhf_core.config.stages import JUDGING, STAGES
from rlhf_core.errors import ConfigError, DataError, RegistryError
from rlhf_core.evaluation.corrected import labels_needed
from rlhf_core.evaluation.report import (
    Page,
    Sample,
    duration,
    how_right,
    render_page,
    shown_suites,
)
from rlhf_core.evaluation.same_cause import forecasts_of
from rlhf_core.evaluation.samples import ComparedAnswer, side_by_side
from rlhf_core.schema import DatasetSplits, ModelRef, StageResult, Verdict, share_of_round
from rlhf_core.stages.evaluation.figures import (
    CURVES,
    choice_figures,
    comparison_figures,
    training_figures,
)
from rlhf_core.statistics.intervals import Resampling
from rlhf_core.storage.records import (
    AnyRecord,
    parse_object,
    read_record,
    read_records,
    write_text,
)

REPORT = "report.html"
NUM_SAMPLES = 8
"""Samples shown of each kind."""
CHANGED = "Changed most from {}, for better or worse by the judge"


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        directory: the run's folder, ``runs/<run id>``.

    Returns:
        Where the page is.

    Raises:
        ConfigError: the folder is not a run.
        RegistryError: MLflow does not answer.
    """
    settings_file = directory / "config.json"
    if not settings_file.is_file():
        raise ConfigError(f"{directory}: not a run, there is no config.json in it")
    config = read_record(settings_file, PipelineConfig)
    ended = ((stage, _result(directory, stage, StageResult)) for stage in JUDGING)
    results: dict[str, StageResult] = {stage: result for stage, result in ended if result}
    notes: list[str] = []
    rows = compared_answers(results.get("evaluate"))
    splits = _result(directory, "prepare", DatasetSplits)
    policy = _result(directory, "policy", StageResult)
    docs = find_docs(splits.directory) if splits else None
    promotion, lineage = _saved(directory / "promote" / "result.json"), _lineage(results, notes)
    models = _models(results, policy)
    page = Page(
        run_id=directory.name,
        project=config.project,
        results=tuple(results.values()),
        promotion=promotion,
        figures={
            "Policy against SFT": comparison_figures(results.get("evaluate"), rows, notes),
            "Training": choice_figures(policy, notes) + training_figures(models, notes),
        },
        samples=pick_samples(rows),
        suites=shown_suites(tuple(results.values())),
        lineage=lineage,
        data=_saved(splits.report) if splits else None,
        settings=config.model_dump_json(indent=2),
        notes=tuple(notes),
        data_docs=str(docs / INDEX) if docs else None,
        facts=_facts(config, splits, lineage, promotion, results)
        | _times(models, results.get("evaluate"), notes),
        averages=side_by_side(rows) if rows else (),
        models=_names(results),
        steps=_steps(results | ({"policy": policy} if policy else {}), splits, promotion),
        needed=needed_to_decide(results, _judge_uri(lineage)),
    )
    write_text(directory / REPORT, render_page(page))
    return directory / REPORT


def _facts(
    config: PipelineConfig,
    splits: DatasetSplits | None,
    lineage: Mapping[str, Any] | None,
    promotion: Mapping[str, Any] | None,
    results: Mapping[str, StageResult],
) -> dict[str, str]:
    """With what the run was made, label to text; what nothing is known of is left out."""
    made_by = f"{config.policy.algorithm}, seed {config.seed}"
    facts = {"configuration": f"{made_by}, settings {config_digest(config)[:12]}"}
    several = {stage: config.distributed_of(stage) for stage in GATED_STAGES}
    if any(each.processes > 1 for each in several.values()):
        facts["processes"] = ", ".join(
            f"{stage} {each.processes}"
            + (f" on {each.nnodes} nodes" if each.nnodes > 1 else "")
            + (" (layers divided)" if each.processes > 1 and each.shard == "layers" else "")
            for stage, each in several.items()
        )
    if lineage:
        changed = " with uncommitted changes" if lineage["git_dirty"] else ""
        commit = lineage["git_commit"]
        facts["commit"] = commit[:12] + changed if commit else "none: not in a git repository"
        facts |= {"checkpoint": lineage["checkpoint"]} if lineage["checkpoint"] else {}
    if splits:
        facts["dataset"] = splits.sha256[:12]
    evaluated = results["evaluate"].report if "evaluate" in results else None
    if evaluated and evaluated.judge:
        facts["judged by"] = evaluated.judge + how_right(evaluated)
    if evaluated and evaluated.best_of_n:
        facts["baseline"] = (
            f"best-of-{evaluated.best_of_n}: of so many answers of SFT the one that the "
            "reward model scores highest"
        )
    compared = evaluated.champion if evaluated else None
    facts["champion before"] = (promotion or {}).get("previous_champion") or compared or "none"
    if promotion:
        facts["champion now"] = promotion["champion"] or "none"
    return facts


def _steps(
    results: Mapping[str, StageResult],
    splits: DatasetSplits | None,
    promotion: Mapping[str, Any] | None,
) -> dict[str, tuple[Verdict | None, str]]:
    """Every stage that ended, in the order they run: its verdict, and what is known of it."""
    known: dict[str, tuple[Verdict | None, str]] = {
        # The policy's stage of earlier builds told no time.
        stage: (result.verdict, duration(result.seconds) if result.seconds else "")
        for stage, result in results.items()
    }
    if splits:
        known["prepare"] = (None, f"dataset {splits.sha256[:12]}")
    if promotion:
        known["promote"] = (None, f"champion {promotion['champion'] or 'none'}")
    return {stage: known[stage] for stage in STAGES if stage in known}


def _times(
    models: Mapping[str, ModelRef], evaluated: StageResult | None, notes: list[str]
) -> dict[str, str]:
    """When the last of the run's work ended, and how long all of it took."""
    runs = [model.run_id for model in models.values()]
    if evaluated is not None:
        runs.append(evaluated.tracking_url.rsplit("/", 1)[-1])
    try:
        spans = [run_span(run) for run in dict.fromkeys(runs) if run]
    except RegistryError as error:
        notes.append(f"No date and total time: {error}")
        return {}
    if not spans:
        return {}
    ended = max(end for end, _ in spans)
    total = sum((length for _, length in spans), timedelta()).total_seconds()
    return {
        "date": f"{ended:%Y-%m-%d %H:%M} UTC",
        "total time": f"{duration(total)}, training and evaluation",
    }


def _names(results: Mapping[str, StageResult]) -> dict[str, str]:
    evaluated = results.get("evaluate")
    if evaluated is None:
        return {}
    names = {"candidate": evaluated.model.uri}
    if "sft" in results:
        names["SFT"] = results["sft"].model.uri
    if evaluated.report.champion:
        names["champion"] = evaluated.report.champion
    return names


WIN_RATES = ("policy/win_rate", "policy/win_rate_over_champion")


def _judge_uri(lineage: Mapping[str, Any] | None) -> str | None:
    judge = lineage["upstream"].get("judge") if lineage else None
    return str(judge["model"]) if judge else None


def needed_to_decide(results: Mapping[str, StageResult], judge_uri: str | None) -> list[str]:
    """Say what would decide the stage that holds: so many samples, and so many people's votes.

    Args:
        results: stage to its result, in the order they ran.
        judge_uri: who judged; votes are counted for the run's own judge alone, for the accuracy of
            another (the judge of the champion's release) was measured on other pairs.
    """
    if not results:
        return []
    last = list(results.values())[-1]
    if last.verdict != "HOLD":
        return []
    lines = forecasts_of(last.judgement.results)
    judge = results.get("judge")
    if judge is None or judge.model.uri != judge_uri:
        return lines
    accuracy = judge.report.metrics.get("judge/heldout_accuracy")
    voted = last.report.people
    share = share_of_round(voted.round + 1 if voted else 1)
    for outcome in last.judgement.results:
        estimate, limit = outcome.estimate, outcome.limit
        if not outcome.needed or outcome.gate not in WIN_RATES or not accuracy:
            continue
        if estimate is None or limit is None or estimate.value == limit:
            continue
        reach = abs(estimate.value - limit)
        count = labels_needed(
            reach,
            estimate.num_samples,
            accuracy=accuracy.value,
            confidence=Resampling(estimate.confidence, share=share).level,
        )
        votes = f"votes on about {count} of" if count else "not even votes on all"
        lines.append(
            f"{outcome.gate}, asked of people: {votes} the {estimate.num_samples} judged pairs "
            f"tell people's preference as exactly as that takes (+-{reach:.3f}), with a judge of "
            f"accuracy {accuracy.value:.2f}"
        )
    return lines


def pick_samples(rows: Sequence[ComparedAnswer]) -> dict[str, list[Sample]]:
    """Choose answers worth reading; every choice is by the numbers, none by hand."""
    by_judge = sorted(rows, key=_judge_margin)
    chosen = {
        CHANGED.format("the champion"): sorted(
            (row for row in rows if row.champion_score is not None and row.champion != row.policy),
            key=lambda row: -abs(_champion_margin(row)),
        ),
        CHANGED.format("SFT"): sorted(
            (row for row in rows if row.sft != row.policy), key=lambda row: -abs(_judge_margin(row))
        ),
        "Clearest wins of the policy": [row for row in reversed(by_judge) if row.won == 1.0],
        "Clearest losses of the policy": [row for row in by_judge if row.won == 0.0],
        "Clearest losses against the champion": sorted(
            (row for row in rows if row.won_over_champion == 0.0), key=_champion_margin
        ),
        "Liked more by its reward model, less by the judge": sorted(
            (row for row in rows if _disputed(row)), key=_judge_margin
        ),
        "In the order of the prompts": list(rows),
    }
    return {
        why: [_sample(row) for row in found[:NUM_SAMPLES]] for why, found in chosen.items() if found
    }


def _judge_margin(row: ComparedAnswer) -> float:
    policy, sft = row.scores["judge"]
    return policy - sft


def _champion_margin(row: ComparedAnswer) -> float:
    return row.scores["judge"][0] - (row.champion_score or 0.0)


def _disputed(row: ComparedAnswer) -> bool:
    policy, sft = row.scores.get("reward", (0.0, 0.0))
    return policy > sft and row.won == 0.0


def _sample(row: ComparedAnswer) -> Sample:
    gold = {"gold": row.gold["score"]} if row.gold else {}
    return Sample(
        prompt=row.prompt,
        tags=row.tags,
        policy=row.policy,
        sft=row.sft,
        won=row.won,
        scores={**row.scores, **gold},
        champion=row.champion,
        champion_score=row.champion_score,
        best_of_n=row.best_of_n,
    )


def compared_answers(result: StageResult | None) -> list[ComparedAnswer]:
    """Return the answers an evaluation compared; none where it left no file of them."""
    if result is None or result.report.samples is None or not result.report.samples.is_file():
        return []
    return read_records(result.report.samples, ComparedAnswer)


def _models(results: Mapping[str, StageResult], policy: StageResult | None) -> dict[str, ModelRef]:
    """The model of every stage that trained one, for its training run."""
    models = {stage: result.model for stage, result in results.items() if stage in CURVES}
    return models if policy is None else models | {"policy": policy.model}


def _lineage(results: Mapping[str, StageResult], notes: list[str]) -> dict[str, Any] | None:
    if not results:
        return None
    model = list(results.values())[-1].model
    if not model.registered:
        return None
    try:
        return trace_lineage(model.uri).model_dump()
    except RegistryError as error:
        notes.append(f"No lineage: {error}")
        return None


def _result(directory: Path, stage: str, kind: type[AnyRecord]) -> AnyRecord | None:
    """What a stage of the run ended with; None where it has not."""
    saved = directory / stage / "result.json"
    return read_record(saved, kind) if saved.is_file() else None


def _saved(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return parse_object(text, where=str(path))
