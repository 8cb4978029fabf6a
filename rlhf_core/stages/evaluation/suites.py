"""Champion and candidate on every suite; what each said is kept, what changed first."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedModel

from rlhf_core.adapters.endpoints.vllm_sampler import open_sampler
from rlhf_core.config import PipelineConfig
from rlhf_core.config.suites import LmEvalSuiteConfig, RegressionSuiteConfig, suite_of
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.harness import HarnessTask, harness_version, load_tasks, tasks_digest
from rlhf_core.evaluation.harness_answers import Asked, harness_answers
from rlhf_core.evaluation.suites import (
    ItemAnswer,
    SuiteItem,
    SuitePlan,
    items_digest,
    paired,
    read_items,
    suite_metrics,
)
from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import EvaluationReport, ModelRef, SuiteRecord
from rlhf_core.stages.evaluation.verdict import metric_plans
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import fits_conversation
from rlhf_core.statistics.intervals import Plans
from rlhf_core.storage.records import write_records
from rlhf_core.tokenization import Renderer
from rlhf_core.trainers.progress import Progress

FOLDER = "suites"
ANSWERS = "suite-answers"
"""Folder of answers as they come, which an evaluation that was stopped goes on from."""


@dataclass(frozen=True)
class AskedModel:
    """A model with what it is asked by."""

    ref: ModelRef
    model: PreTrainedModel
    renderer: Renderer


@dataclass(frozen=True)
class ListSuite:
    """A list of one's own, read."""

    suite: RegressionSuiteConfig
    items: Sequence[SuiteItem]

    @property
    def source(self) -> str:
        """Where it is from, for people."""
        return str(self.suite.path)

    @property
    def sha256(self) -> str:
        """Digest of what it asks."""
        return items_digest(self.items)

    @property
    def tags(self) -> set[str]:
        """Parts that have metrics of their own."""
        return {tag for item in self.items for tag in item.tags}

    def answers(
        self, config: PipelineConfig, asked: AskedModel, directory: Path
    ) -> list[ItemAnswer]:
        """Answer every item greedily; nothing of it is kept, for it takes no longer than a look."""
        said = _greedy(config, self.suite, self.items, asked)
        unmet = [tuple(item.unmet(text)) for item, text in zip(self.items, said, strict=True)]
        return [
            ItemAnswer(item.id, item.prompt, item.tags, text, float(not failed), failed)
            for item, text, failed in zip(self.items, said, unmet, strict=True)
        ]


@dataclass(frozen=True)
class HarnessSuite:
    """Tasks of lm-evaluation-harness, loaded."""

    suite: LmEvalSuiteConfig
    tasks: Sequence[HarnessTask]
    sha256: str = field(init=False)
    """Digest of what they ask."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", tasks_digest(self.suite))

    @property
    def source(self) -> str:
        """Where it is from, for people."""
        metrics = sorted({task.metric for task in self.tasks})
        harness = f"lm-eval {harness_version(self.suite.name)}"
        return f"{', '.join(self.suite.tasks)} ({', '.join(metrics)}, {harness})"

    @property
    def tags(self) -> set[str]:
        """Parts that have metrics of their own."""
        return {task.part for task in self.tasks if task.part}

    def answers(
        self, config: PipelineConfig, asked: AskedModel, directory: Path
    ) -> list[ItemAnswer]:
        """Answer and score every item; what is there of an earlier attempt is not asked again."""
        settings = self.suite.model_dump(exclude={"name", "max_loss", "items_are", "confidence"})
        known = [self.sha256, asked.ref.sha256, settings, config.model.device]
        name = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:16]
        progress: dict[str, Progress] = {}

        def tell(task: str, done: int, total: int) -> None:
            if task not in progress:
                told = f"evaluate: {self.suite.name}: {task}: {asked.ref.name}"
                progress[task] = Progress(told, total=total, done=0)
            while progress[task].done < done:
                progress[task].advance({})

        journal = directory / ANSWERS / f"{self.suite.name}-{name}.jsonl"
        how = Asked(self.suite, config.answer_length(), journal, tell)
        try:
            return harness_answers(self.tasks, asked.model, asked.renderer.tokenizer, how)
        finally:
            for shown in progress.values():
                shown.close()


AskedSuite = ListSuite | HarnessSuite


def check_suites(config: PipelineConfig, *, tasks: bool = True) -> list[AskedSuite]:
    """Read the suites; refuse what cannot be run, and gates on parts of them that do not exist.

    Args:
        config: settings of the run.
        tasks: load those of lm-evaluation-harness, too, which takes seconds; what evaluates nothing
            leaves them out.

    Returns:
        Every suite with its items.

    Raises:
        DataError: a list or a task's data are missing or broken; file and line.
        ConfigError: a gate asks about a tag that no item has; a task cannot be used here.
    """
    found: list[AskedSuite] = []
    for suite in config.evaluation.suites:
        if isinstance(suite, LmEvalSuiteConfig) and not tasks:
            continue
        asked: AskedSuite = (
            HarnessSuite(suite, load_tasks(suite))
            if isinstance(suite, LmEvalSuiteConfig)
            else ListSuite(suite, read_items(suite.path))
        )
        for gate in config.gates_of("policy"):
            part = gate.metric.removeprefix(f"suite/{suite.name}/").rpartition("/")[0]
            if suite_of(gate.metric, [suite]) and part and part not in asked.tags:
                known = ", ".join(sorted(asked.tags)) or "none"
                raise ConfigError(
                    f"gates.policy: {gate.metric}: no item of {asked.source} has the tag {part!r}; "
                    f"tags are {known}"
                )
        found.append(asked)
    return found


def with_suites(
    config: PipelineConfig,
    asked: Sequence[AskedSuite],
    models: Mapping[str, ModelRef],
    report: EvaluationReport,
    directory: Path,
) -> EvaluationReport:
    """Return the report with every suite measured anew: greedy answers are the same each time.

    Args:
        config: settings of the run.
        asked: the suites, as ``check_suites`` read them.
        models: ``policy``, ``sft`` and, where there is one, ``champion``.
        report: what was measured on held-out prompts.
        directory: gets ``suites/NAME.jsonl`` of each.
    """
    others = {name: one for name, one in report.metrics.items() if not name.startswith("suite/")}
    suites: dict[str, SuiteRecord] = {}
    plans = metric_plans(config, "policy", look=report.look)
    baseline = models.get("champion") or models["sft"]
    candidates = _answers(config, asked, models["policy"], directory)
    baselines = _answers(config, asked, baseline, directory)
    for one, own, theirs in zip(asked, candidates, baselines, strict=True):
        rows = paired(own, theirs)
        path = directory / FOLDER / f"{one.suite.name}.jsonl"
        write_records(path, rows)
        others |= suite_metrics(
            rows, SuitePlan(one.suite, _reseeded(plans, one), config.evaluation)
        )
        suites[one.suite.name] = SuiteRecord(
            source=one.source,
            sha256=one.sha256,
            baseline=baseline.uri,
            baseline_score=sum(row.baseline_score for row in rows) / len(rows),
            lost=sum(row.change < 0 for row in rows),
            gained=sum(row.change > 0 for row in rows),
            answers=path,
        )
    return report.model_copy(update={"metrics": others, "suites": suites})


def _reseeded(plans: Plans, asked: AskedSuite) -> Plans:
    """Resample by what is asked: with another seed of the run the same answers are as wide."""
    seed = derived_seed(0, f"suite {asked.sha256}")
    return replace(plans, default=replace(plans.default, seed=seed))


def _answers(
    config: PipelineConfig, asked: Sequence[AskedSuite], ref: ModelRef, directory: Path
) -> list[list[ItemAnswer]]:
    """Return a model's answers to each suite; it is loaded once, and let go before the next is."""
    if not asked:
        return []
    model = load_causal(ref.path, device=config.model.device)
    one = AskedModel(ref, model, model_renderer(ref.path))
    return [suite.answers(config, one, directory) for suite in asked]


def _greedy(
    config: PipelineConfig,
    suite: RegressionSuiteConfig,
    items: Sequence[SuiteItem],
    asked: AskedModel,
) -> list[str]:
    longest = suite.max_new_tokens or config.answer_length()
    room = config.model.max_length - longest
    for item in items:
        if not fits_conversation(item.prompt, asked.renderer, room):
            raise DataError(
                f"{suite.path}, {item.id}: the prompt cannot be rendered for {asked.ref.uri} in "
                f"{room} tokens (model.max_length less the answer's {longest}); shorten it, or "
                f"give the suite {suite.name} fewer max_new_tokens"
            )
    with open_sampler(config.policy.rollouts) as sampler:
        answers = sample_responses(
            asked.model,
            asked.renderer.tokenizer,
            [item.prompt for item in items],
            max_new_tokens=longest,
            temperature=0.0,
            seed=config.seed,
            sampler=sampler,
        )
    return [answer.text for answer in answers]
