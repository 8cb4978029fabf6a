"""The seam between order and work for labels, as ``bindings`` is for training."""

from collections.abc import Sequence
from pathlib import Path

from rlhf_core.config import PipelineConfig
from rlhf_core.feedback.results import CollectedPairs, PullResult, PushResult
from rlhf_core.schema import DatasetSplits, ModelRef


def collect_pairs(
    config: PipelineConfig, splits: DatasetSplits, models: Sequence[ModelRef]
) -> CollectedPairs:
    """Sample two different answers to each of some prompts."""
    from rlhf_core.stages.collect import collect_pairs as collect

    return collect(config, splits, models)


def push_labels(config: PipelineConfig, collection: str, *, again: bool = False) -> PushResult:
    """Ask for the votes on a collection that were not asked for yet."""
    from rlhf_core.stages.labels.push import push_labels as push

    return push(config, collection, again=again)


def pull_labels(
    config: PipelineConfig,
    collection: str,
    *,
    output: Path | None = None,
    min_kept_fraction: float = 1.0,
) -> PullResult:
    """Publish the pairs of a collection that have enough votes, or write them to a file."""
    from rlhf_core.stages.labels.pull import pull_labels as pull

    return pull(config, collection, output=output, min_kept_fraction=min_kept_fraction)
