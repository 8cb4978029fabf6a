"""The seam between order and work for labels, as ``bindings`` is for training."""

from collections.abc import Sequence
from pathlib import Path

from rlhf_core.config import PipelineConfig
from rlhf_core.feedback.results import CollectedPairs, PullResult, PushResult
from rlhf_core.schema import DatasetSplits, ModelRef, StageResult


def collect_pairs(
    config: PipelineConfig, splits: DatasetSplits, models: Sequence[ModelRef]
) -> CollectedPairs:
    """Sample two different answers to each of some prompts."""
    from rlhf_core.stages.collect import collect_pairs as collect

    return collect(config, splits, models)


def collect_evaluated(
    config: PipelineConfig,
    run_id: str,
    evaluated: StageResult,
    *,
    pairs: int | None,
    half_width: float | None,
) -> CollectedPairs:
    """Draw pairs of answers that a run's evaluation judged."""
    from rlhf_core.stages.labels import evaluated as stage

    narrow = stage.HALF_WIDTH if half_width is None else half_width
    return stage.collect_evaluated(config, run_id, evaluated, pairs=pairs, half_width=narrow)


def votes_digest(evaluated: StageResult | None) -> str | None:
    """Return what changes with people's votes on the answers of an evaluation."""
    from rlhf_core.adapters.looks import votes_digest as digest

    look = evaluated.report.look if evaluated else None
    return digest(look.entry) if look else None


def push_labels(config: PipelineConfig, collection: str, *, again: bool = False) -> PushResult:
    """Ask for the votes on a collection that were not asked for yet."""
    from rlhf_core.stages.labels.push import push_labels as push

    return push(config, collection, again=again)


def pull_labels(
    config: PipelineConfig,
    collection: str,
    *,
    output: Path | None = None,
    votes: Path | None = None,
    min_kept_fraction: float = 1.0,
) -> PullResult:
    """Publish the pairs of a collection that have enough votes, or write them to a file.

    Votes on the answers of an evaluation go to it instead.
    """
    from rlhf_core.stages.labels.pull import pull_labels as pull

    return pull(config, collection, output=output, votes=votes, min_kept_fraction=min_kept_fraction)
