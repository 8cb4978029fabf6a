"""Best-of-k accuracy: does a reward model pick the right answer out of several?

Rows as RewardBench 2 publishes them (Malik et al. 2025, arXiv:2506.01937): ``prompt``, ``chosen``
and ``rejected``, each a list of answers or one, and ``subset``, where it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_core.config import PipelineConfig
from rlhf_core.config.metric_names import BEST_OF_K
from rlhf_core.dataprep.keys import dialogue_key
from rlhf_core.dataprep.sources.containers import read_rows
from rlhf_core.dataprep.sources.messages import parse_prompt, texts_of
from rlhf_core.dataprep.sources.rows import FilteredRow, RawRow, UnusableRow
from rlhf_core.errors import DataError
from rlhf_core.evaluation.preference_metrics import MAX_TAG_VALUES
from rlhf_core.schema import Conversation, Estimate, EvaluationReport, ModelRef
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import readable_ids, score_texts
from rlhf_core.statistics.clusters import numbered
from rlhf_core.statistics.intervals import SHARE, Plans, estimate_mean
from rlhf_core.statistics.resampling import Array


@dataclass(frozen=True, slots=True)
class Choices:
    """A prompt with the one right answer to it, which stands first, and wrong ones."""

    prompt: Conversation
    answers: tuple[str, ...]
    subset: str


@dataclass(frozen=True)
class BestOfK:
    """How often the right answer scores highest."""

    accuracy: Estimate
    by_subset: dict[str, Estimate]
    """``subset=<name>`` to the accuracy over its rows."""
    scope: str
    """How many rows, what chance would reach, and what was left out."""


def read_choices(path: Path) -> tuple[list[Choices], int]:
    """Read all rows with one right answer, and count those with several, which are left out.

    Raises:
        DataError: the file cannot be read, a row lacks what it needs, or none has one right answer.
    """
    found: list[Choices] = []
    several = 0
    for row in read_rows(path):
        if isinstance(row, FilteredRow):
            raise DataError(f"{path}, line {row.line}: {row.detail or row.reason}")
        choices = _choices_of(row)
        several += choices is None
        found += [choices] if choices else []
    if not found:
        raise DataError(
            f"{path}: no row with one right answer; expected prompt, chosen (one answer) and "
            "rejected (one or more)"
        )
    return found, several


def _choices_of(row: RawRow) -> Choices | None:
    """Return the row's answers; None where several are right."""
    where = f"{row.path}, {row.unit} {row.line}"
    try:
        row.require("prompt", "chosen", "rejected")
        right, wrong = (_answers(row, column, where) for column in ("chosen", "rejected"))
        prompt = parse_prompt(row)
    except UnusableRow as error:
        raise DataError(f"{where}: {error.detail or error.reason}") from error
    if set(right) & set(wrong):
        raise DataError(f"{where}: one answer is both in chosen and in rejected")
    subset = row.value.get("subset")
    return Choices(prompt, (*right, *wrong), str(subset or "")) if len(right) == 1 else None


def _answers(row: RawRow, column: str, where: str) -> list[str]:
    value = row.value[column]
    texts = (
        [value] if isinstance(value, str) and value.strip()[:1] != "[" else texts_of(row, column)
    )
    if not texts or not all(text.strip() for text in texts):
        raise DataError(f"{where}: {column}: expected an answer or a list of answers")
    return texts


def with_best_of_k(
    config: PipelineConfig, report: EvaluationReport, plans: Plans
) -> EvaluationReport:
    """Return the report of a reward model or judge with its best-of-k accuracy, if that is asked.

    Raises:
        DataError: as ``read_choices``, or no row fits.
    """
    path = config.evaluation.best_of_k
    if path is None:
        return report
    best = best_of_k(config, report.model, path, prefix=report.stage, plans=plans)
    name = f"{report.stage}/{BEST_OF_K}"
    breakdown = {group: dict(metrics) for group, metrics in report.breakdown.items()}
    for group, accuracy in best.by_subset.items():
        breakdown.setdefault(group, {})[name] = accuracy
    return report.model_copy(
        update={
            "metrics": {**report.metrics, name: best.accuracy},
            "breakdown": breakdown,
            "units": f"{BEST_OF_K} on {path.name}: {best.scope}",
        }
    )


def best_of_k(
    config: PipelineConfig, model: ModelRef, path: Path, *, prefix: str, plans: Plans
) -> BestOfK:
    """Score all answers of every row; a row is right where the right one scores highest.

    Several answers that share the highest score share the row. Rows that do not fit the model are
    left out and counted.

    Raises:
        DataError: as ``read_choices``, or no row fits.
    """
    rows, several = read_choices(path)
    renderer, longest = model_renderer(model.path), config.model.max_length
    fitting = []
    for row in rows:
        try:
            before = len(renderer.prompt_ids(row.prompt))
            long = max(len(readable_ids(renderer, text)) for text in row.answers)
        except DataError:
            continue
        fitting += [row] if before + long <= longest else []
    if not fitting:
        raise DataError(f"{path}: none of {len(rows)} rows fits into {longest} tokens")
    right = _picked(config, model, fitting)
    clusters = numbered(dialogue_key(row.prompt) for row in fitting)
    plan = plans(f"{prefix}/{BEST_OF_K}")
    subsets = np.array([row.subset for row in fitting])
    names = sorted(set(subsets.tolist()) - {""})
    chance = float(np.mean([1.0 / len(row.answers) for row in fitting]))
    scope = f"{len(fitting)} of {len(rows) + several} rows, chance {chance:.3g}"
    scope += f", {several} with several right answers left out" if several else ""
    scope += f", {len(rows) - len(fitting)} that do not fit left out" if fitting != rows else ""
    return BestOfK(
        accuracy=estimate_mean(right, plan.by(clusters), bounds=SHARE),
        by_subset={
            f"subset={name}": estimate_mean(
                right[subsets == name], plan.by(clusters[subsets == name]), bounds=SHARE
            )
            for name in names
            if len(names) <= MAX_TAG_VALUES
        },
        scope=scope,
    )


def _picked(config: PipelineConfig, model: ModelRef, rows: Sequence[Choices]) -> Array:
    """1 where the first answer scores highest, a part of it where others share that: [n]."""
    flat = [(row.prompt, text) for row in rows for text in row.answers]
    (scores,) = score_texts(
        model.path,
        [prompt for prompt, _ in flat],
        [[text for _, text in flat]],
        budget=config.evaluation.micro_batch_tokens,
        device=config.model.device,
    )
    ends = np.cumsum([len(row.answers) for row in rows])[:-1]
    return np.array([credit(of_row) for of_row in np.split(scores, ends)])


def credit(scores: Array) -> float:
    """Credit for a row whose first answer is the right one."""
    best = scores == scores.max()
    return float(best[0]) / float(best.sum())
