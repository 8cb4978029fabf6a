"""Bring votes back: pairs that have enough of them become part of a new dataset version."""

import logging
import math
from collections import Counter
from collections.abc import Container, Sequence
from fractions import Fraction
from pathlib import Path

from rlhf_core.adapters.datasets import dvc_versions, versioning
from rlhf_core.config import PipelineConfig, SourceConfig
from rlhf_core.errors import DataError
from rlhf_core.feedback.agreement import judges_against_people, votes_alpha
from rlhf_core.feedback.ballots import FOLDER, add_file_votes, all_votes, count_aside
from rlhf_core.feedback.collection import (
    ORIGINS,
    Collection,
    Evaluated,
    Origin,
    find_collection,
    read_collection,
)
from rlhf_core.feedback.results import PullResult
from rlhf_core.schema import BatchResult, Comparison, Record
from rlhf_core.stages.labels.evaluated import keep_with_evaluation
from rlhf_core.stages.labels.labelers import labeler_of
from rlhf_core.stages.versions import batches as data_batches
from rlhf_core.stages.versions.publish import publish
from rlhf_core.stages.versions.versions import fetch_version, find_version, list_versions
from rlhf_core.storage.folders import exclusive
from rlhf_core.storage.records import (
    iterate_records,
    read_record,
    read_records,
    write_record,
    write_records,
)

logger = logging.getLogger(__name__)

PUBLISHED = "published"
"""Folder of the batches that were published: ``0001.jsonl``, and its version in ``0001.json``."""


class PublishedBatch(Record):
    """Which version a batch of the collection became part of."""

    version: str


def pull_labels(
    config: PipelineConfig,
    reference: str,
    *,
    output: Path | None = None,
    votes: Path | None = None,
    at_least: float = 0.0,
    min_kept_fraction: float = 1.0,
) -> PullResult:
    """Publish the pairs of a collection that have enough votes by now, each once.

    A pair is published when it has ``feedback.votes_per_pair`` votes, with all votes it has by
    then; those that come later change nothing any more. Pairs with fewer wait for the next pull.
    Votes on the answers of an evaluation stay with it, all there are, and are never published.

    Args:
        config: settings, with a ``feedback`` section.
        reference: id or folder of the collection.
        output: write the batch to this file, in canonical form, and publish nothing.
        votes: file of votes to bring in instead of asking the label server.
        at_least: publish, or write, nothing while a smaller share of the pairs is ready.
        min_kept_fraction: as for ``publish``.

    Raises:
        ConfigError: there is no ``feedback`` section.
        DataError: there is no such collection, or no version can be published.
        LabelError: the label server does not answer.
    """
    feedback = config.feedback_settings()
    folder = find_collection(reference, feedback.output)
    collection, pairs = read_collection(folder)
    if collection.evaluation is not None and output is not None:
        raise DataError(
            f"{folder.name}: votes on the answers of an evaluation correct its judge and train "
            "nothing; leave --output out"
        )
    if collection.evaluation is not None and at_least:
        raise DataError(
            f"{folder.name}: votes on the answers of an evaluation count at any number; leave "
            "--at-least out"
        )
    with exclusive(folder / PUBLISHED):
        if votes is not None:
            with exclusive(folder / FOLDER):
                add_file_votes(folder, votes, pairs)
        else:
            labeler_of(feedback.labeler).pull(folder, pairs)
        if collection.evaluation is not None:
            return _kept(config, folder, collection, collection.evaluation)
        recovered = None if output else _finish_interrupted(folder)
        labelled = _labelled(folder, pairs)
        before = _published(folder)
        ready = _ready(labelled, before, feedback.votes_per_pair)
        needed = pairs_needed(at_least, len(pairs))
        result = _measured(config, folder, labelled, before, len(ready))
        result = result.model_copy(update={"needed": needed})
        if output is not None:
            if at_least == 0.0 or len(ready) >= needed:
                write_records(output, ready)
                result = result.model_copy(update={"output": output})
            return result
        enough = len(ready) >= needed
        published = _publish(folder, ready, min_kept_fraction) if enough else recovered
        last = last_version(folder)
    return result.model_copy(update={"published": published, "last_version": last})


def count_ready(config: PipelineConfig, reference: str) -> tuple[int, int]:
    """Ask the label server; return how many pairs a pull would publish now, and how many there are.

    Args:
        config: settings, with a ``feedback`` section.
        reference: id or folder of the collection.

    Raises:
        DataError: there is no such collection, or it was not sent to the server.
        LabelError: the label server does not answer.
    """
    feedback = config.feedback_settings()
    folder = find_collection(reference, feedback.output)
    pairs = read_collection(folder)[1]
    with exclusive(folder / PUBLISHED):
        labeler_of(feedback.labeler).pull(folder, pairs)
        before = _published(folder)
        return len(_ready(_labelled(folder, pairs), before, feedback.votes_per_pair)), len(pairs)


def pairs_needed(share: float, pairs: int) -> int:
    """Return how many of the pairs are a share of them, as people write it; at least one.

    0.55 of 100 are 55: as binary numbers they would be a little more, and so 56.
    """
    return max(1, math.ceil(Fraction(repr(share)) * pairs))


def num_published(folder: Path) -> int:
    """Return how many batches of a collection are part of a version."""
    return len(list((folder / PUBLISHED).glob("*.json")))


def last_version(folder: Path) -> str | None:
    """Return the newest version that has pairs of a collection; None where there is none yet."""
    marks = sorted((folder / PUBLISHED).glob("*.json"))
    return read_record(marks[-1], PublishedBatch).version if marks else None


def _kept(
    config: PipelineConfig, folder: Path, collection: Collection, about: Evaluated
) -> PullResult:
    labelled = _labelled(folder, read_collection(folder)[1])
    kept = keep_with_evaluation(folder, collection, about, labelled)
    found = _measured(config, folder, labelled, {}, 0)
    return found.model_copy(update={"evaluation": about.run_id, "kept": kept})


def _labelled(folder: Path, pairs: Sequence[Comparison]) -> list[Comparison]:
    votes = all_votes(folder)
    return [pair.model_copy(update={"votes": votes.get(pair.comparison_id, ())}) for pair in pairs]


def _ready(
    labelled: Sequence[Comparison], before: Container[str], votes_per_pair: int
) -> list[Comparison]:
    """Return the pairs that have the votes they need and are in no version yet."""
    new = (pair for pair in labelled if pair.comparison_id not in before)
    return [pair for pair in new if len(pair.votes) >= votes_per_pair]


def _published(folder: Path) -> dict[str, int]:
    """Return the pairs that are part of a version, and how many votes went with each."""
    return {
        pair.comparison_id: len(pair.votes)
        for mark in sorted((folder / PUBLISHED).glob("*.json"))
        for pair in iterate_records(mark.with_suffix(".jsonl"), Comparison)
    }


def _measured(
    config: PipelineConfig,
    folder: Path,
    labelled: Sequence[Comparison],
    before: dict[str, int],
    num_ready: int,
) -> PullResult:
    votes = [pair.votes for pair in labelled if pair.votes]
    num_resamples, seed = config.data.votes.num_resamples, config.seed
    late = [
        max(0, len(pair.votes) - before[pair.comparison_id])
        for pair in labelled
        if pair.comparison_id in before
    ]
    return PullResult(
        collection_id=folder.name,
        pairs=len(labelled),
        pairs_by_votes=dict(sorted(Counter(len(pair.votes) for pair in labelled).items())),
        votes_per_pair=config.feedback_settings().votes_per_pair,
        published_before=len(before),
        late_votes=sum(late),
        set_aside=count_aside(folder),
        ready=num_ready,
        alpha=votes_alpha(votes, num_resamples=num_resamples, seed=seed),
        judges=dict(judges_against_people(votes, num_resamples=num_resamples, seed=seed)),
        preferred=_preferred(folder, labelled),
    )


def _preferred(folder: Path, labelled: Sequence[Comparison]) -> dict[str, int]:
    """Count the votes for each of two models; nothing where one answered twice."""
    origins = {row.comparison_id: row for row in read_records(folder / ORIGINS, Origin)}
    if all(row.model_a == row.model_b for row in origins.values()):
        return {}
    found: Counter[str] = Counter()
    for pair in labelled:
        origin = origins[pair.comparison_id]
        by_side = {"a": origin.model_a, "b": origin.model_b, "tie": "tie"}
        found.update(by_side[vote.choice] for vote in pair.votes)
    return dict(sorted(found.items()))


def _publish(folder: Path, ready: Sequence[Comparison], min_kept_fraction: float) -> BatchResult:
    """Publish a batch; what it holds is on the disk before, so that a kill loses no account."""
    number = num_published(folder) + 1
    batch = folder / PUBLISHED / f"{number:04d}.jsonl"
    write_records(batch, ready)
    result = publish(SourceConfig(path=batch.absolute()), min_kept_fraction=min_kept_fraction)
    _mark(batch, result.version.version)
    return result


def _mark(batch: Path, version: str) -> None:
    write_record(batch.with_suffix(".json"), PublishedBatch(version=version))


def _finish_interrupted(folder: Path) -> BatchResult | None:
    """Settle what a killed pull left: its batch is part of a version by now, or of none."""
    for batch in sorted((folder / PUBLISHED).glob("*.jsonl")):
        if batch.with_suffix(".json").is_file():
            continue
        root = versioning.repository_root(Path())
        known = [(known.version, known.batch) for known in list_versions(root) if known.batch]
        version = data_batches.version_with(batch, root, known)
        if version is None:
            batch.unlink()
            continue
        _mark(batch, version)
        moved = dvc_versions.advance_branch(root, version)
        return BatchResult(
            version=find_version(version),
            directory=fetch_version(version).directory,
            set_aside={},
            branch_moved=moved,
        )
    return None
