"""Champion and candidate on every suite; what each said is kept, what changed first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_core.config import PipelineConfig
from rlhf_core.config.suites import RegressionSuiteConfig, suite_of
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.suites import (
    SuiteAnswer,
    SuiteItem,
    SuitePlan,
    items_digest,
    read_items,
    suite_metrics,
)
from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import EvaluationReport, ModelRef, SuiteRecord
from rlhf_core.stages.base_model import model_renderer
from rlhf_core.stages.evaluation.scoring import fits_conversation
from rlhf_core.stages.evaluation.verdict import metric_plans
from rlhf_core.storage.records import write_records

FOLDER = "suites"


def check_suites(config: PipelineConfig) -> dict[str, list[SuiteItem]]:
    """Read the suites; refuse what cannot be run, and gates on parts of them that do not exist.

    Returns:
        The items of each suite, by its name.

    Raises:
        DataError: a list is missing or broken; file and line.
        ConfigError: a gate asks about a tag that no item has.
    """
    found = {suite.name: read_items(suite.path) for suite in config.evaluation.suites}
    for suite in config.evaluation.suites:
        tags = {tag for item in found[suite.name] for tag in item.tags}
        for gate in config.gates_of("policy"):
            asked = gate.metric.removeprefix(f"suite/{suite.name}/").rpartition("/")[0]
            if suite_of(gate.metric, [suite]) and asked and asked not in tags:
                known = ", ".join(sorted(tags)) or "none"
                raise ConfigError(
                    f"gates.policy: {gate.metric}: no item of {suite.path} has the tag {asked!r}; "
                    f"tags are {known}"
                )
    return found


def with_suites(
    config: PipelineConfig,
    asked: Mapping[str, Sequence[SuiteItem]],
    models: Mapping[str, ModelRef],
    report: EvaluationReport,
    directory: Path,
) -> EvaluationReport:
    """Return the report with every suite measured anew: greedy answers are the same each time.

    Args:
        config: settings of the run.
        asked: items of each suite, as ``check_suites`` read them.
        models: ``policy``, ``sft`` and, where there is one, ``champion``.
        report: what was measured on held-out prompts.
        directory: gets ``suites/NAME.jsonl`` of each.
    """
    others = {name: one for name, one in report.metrics.items() if not name.startswith("suite/")}
    suites: dict[str, SuiteRecord] = {}
    plans = metric_plans(config, "policy", look=report.look)
    for suite in config.evaluation.suites:
        items = asked[suite.name]
        rows = compare_on(config, suite, items, models)
        rows.sort(key=lambda row: (row.change == 0.0, row.change))
        path = directory / FOLDER / f"{suite.name}.jsonl"
        write_records(path, rows)
        others |= suite_metrics(rows, SuitePlan(suite, plans, config.evaluation))
        suites[suite.name] = SuiteRecord(
            source=str(suite.path),
            sha256=items_digest(items),
            baseline=_baseline(models).uri,
            baseline_score=sum(row.baseline_score for row in rows) / len(rows),
            lost=sum(row.change < 0 for row in rows),
            gained=sum(row.change > 0 for row in rows),
            answers=path,
        )
    return report.model_copy(update={"metrics": others, "suites": suites})


def _baseline(models: Mapping[str, ModelRef]) -> ModelRef:
    return models.get("champion") or models["sft"]


def compare_on(
    config: PipelineConfig,
    suite: RegressionSuiteConfig,
    items: Sequence[SuiteItem],
    models: Mapping[str, ModelRef],
) -> list[SuiteAnswer]:
    """Answer every item greedily by candidate and baseline, and look at both answers."""
    longest = suite.max_new_tokens or config.answer_length()
    candidate, baseline = (
        _greedy(config, suite, items, model, longest)
        for model in (models["policy"], _baseline(models))
    )
    rows = []
    for item, own, other in zip(items, candidate, baseline, strict=True):
        unmet, theirs = item.unmet(own), item.unmet(other)
        rows.append(
            SuiteAnswer(
                item=item.id,
                prompt=item.prompt,
                tags=item.tags,
                candidate=own,
                baseline=other,
                candidate_score=float(not unmet),
                baseline_score=float(not theirs),
                candidate_unmet=tuple(unmet),
                baseline_unmet=tuple(theirs),
            )
        )
    return rows


def _greedy(
    config: PipelineConfig,
    suite: RegressionSuiteConfig,
    items: Sequence[SuiteItem],
    model: ModelRef,
    longest: int,
) -> list[str]:
    renderer = model_renderer(model.path)
    room = config.model.max_length - longest
    for item in items:
        if not fits_conversation(item.prompt, renderer, room):
            raise DataError(
                f"{suite.path}, {item.id}: the prompt cannot be rendered for {model.uri} in {room} "
                f"tokens (model.max_length less the answer's {longest}); shorten it, or give the "
                f"suite {suite.name} fewer max_new_tokens"
            )
    answers = sample_responses(
        load_causal(model.path, device=config.model.device),
        renderer.tokenizer,
        [item.prompt for item in items],
        max_new_tokens=longest,
        temperature=0.0,
        seed=config.seed,
    )
    return [answer.text for answer in answers]
