"""Pairs of answers that an evaluation judged, for people to vote on; the votes stay with it."""

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_core.adapters.datasets.versioning import git_revision
from rlhf_core.adapters.registry.decision import EVALUATION
from rlhf_core.adapters.registry.looks import (
    find_look,
    keep_votes,
    measured_before,
    rounds_taken,
)
from rlhf_core.adapters.registry.required_gates import required_gates
from rlhf_core.adapters.registry.versions import find_version, upstream_uris
from rlhf_core.adapters.tracking.tracking import look_up_run
from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.errors import DataError
from rlhf_core.evaluation.corrected import MIN_LABELS, labels_needed
from rlhf_core.evaluation.gates import WIN_RATE_CORRECTED, deciding_confidence
from rlhf_core.evaluation.people import OutcomeVote, VotedPair
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.feedback.collection import (
    ALIKE,
    COLLECTION,
    MANIFEST,
    ORIGINS,
    PAIRS,
    Collection,
    Counts,
    Evaluated,
    Origin,
    SampledModel,
    on_drawn_sides,
    read_collection,
)
from rlhf_core.feedback.results import CollectedPairs
from rlhf_core.schema import Comparison, Look, ModelRef, StageResult
from rlhf_core.schema.model_uri import is_model_uri
from rlhf_core.storage.folders import exclusive, replacing_directory
from rlhf_core.storage.own_folders import require_replaceable
from rlhf_core.storage.records import read_records, sha256_of, write_record, write_records

HALF_WIDTH = 0.05
"""Of the corrected interval, where nobody says how narrow it has to be."""
_UNKNOWN = 0.5
"""Accuracy of a judge of which none is on record: votes are counted as if it knew nothing."""


def collect_evaluated(
    config: PipelineConfig,
    run_id: str,
    evaluated: StageResult,
    *,
    pairs: int | None = None,
    half_width: float | None = None,
) -> CollectedPairs:
    """Draw pairs at random from those that an evaluation judged, as a collection to vote on.

    The same evaluation, ``feedback.seed`` and number make the same collection; a larger number adds
    pairs to those of a smaller one. They lie in the order they were drawn, so that whoever votes on
    the first of them votes on a random sample.

    Args:
        config: settings, with a ``feedback`` section.
        run_id: the pipeline run.
        evaluated: its evaluation.
        pairs: how many are drawn; None takes what ``half_width`` needs.
        half_width: of the corrected interval; None takes ``HALF_WIDTH``.

    Raises:
        DataError: more pairs than were judged, or so few that they correct nothing.
        RegistryError: the evaluation's files are gone, or MLflow does not answer.
    """
    if evaluated.report.look is None:
        raise DataError(f"run {run_id}: its evaluation is on no record of looks; evaluate again")
    look, tags = find_look(evaluated.report.look.entry)
    with tempfile.TemporaryDirectory() as place:
        samples = Path(place) / "samples.jsonl"
        measured_before(look, samples)
        rows, samples_sha256 = read_records(samples, ComparedAnswer), sha256_of(samples)
    outside = evaluated.report.judge_accuracy
    accuracy = outside.value if outside else _judge_accuracy(tags.get("rlhf.judge", ""))
    half_width = HALF_WIDTH if half_width is None else half_width
    needed = labels_needed(
        half_width,
        len(rows),
        accuracy=_UNKNOWN if accuracy is None else accuracy,
        confidence=_level(config, evaluated.report.look, rounds_taken(tags)),
    )
    count = _count(pairs, needed, len(rows))
    seed = config.feedback_settings().seed
    order = random.Random(f"{seed}:evaluated").sample(range(len(rows)), len(rows))
    about = Evaluated(
        run_id=run_id,
        look=look.entry,
        judged=len(rows),
        drawn=count,
        seed=seed,
        half_width=half_width,
        accuracy=accuracy,
        needed=needed,
    )
    parts = {"look": look.entry, "samples": samples_sha256, "drawn": str(count), "seed": str(seed)}
    models = (SampledModel.of(evaluated.model), _reference_of(evaluated.model))
    return _collected(config, [rows[index] for index in order[:count]], about, models, parts)


def _level(config: PipelineConfig, look: Look, rounds: int) -> float:
    """Level of the interval that the next decision with votes reads: later ones are surer."""
    asked = required_gates(config.project).added_to("policy", config.gates_of("policy"))
    confidences = {gate.metric: gate.confidence for gate in asked}
    confidence = confidences.get(WIN_RATE_CORRECTED, config.evaluation.confidence)
    return deciding_confidence(WIN_RATE_CORRECTED, confidence, look, rounds + 1)


def _judge_accuracy(judge: str) -> float | None:
    """Return the accuracy on held-out pairs that is on record with a judge."""
    if not is_model_uri(judge):
        return None
    run_id = find_version(judge).tags.get(EVALUATION)
    return None if run_id is None else look_up_run(run_id)[1].get("judge/heldout_accuracy")


def _reference_of(policy: ModelRef) -> SampledModel:
    """The SFT model that gave the other answers; of a policy in a folder it has no name."""
    uri = upstream_uris(policy.uri).get("sft") if policy.registered else None
    if uri is None:
        return SampledModel(uri="sft", version="", sha256="")
    version = find_version(uri)
    digest = version.tags.get("rlhf.sha256", "")
    return SampledModel(uri=uri, version=str(version.version), sha256=digest)


def _count(asked: int | None, needed: int | None, judged: int) -> int:
    count = (needed or judged) if asked is None else asked
    if count > judged or count < MIN_LABELS:
        raise DataError(
            f"{count} pairs: the evaluation judged {judged}, and fewer than {MIN_LABELS} correct "
            f"nothing; expected --pairs from {MIN_LABELS} to {judged}"
        )
    return count


def _collected(
    config: PipelineConfig,
    rows: Sequence[ComparedAnswer],
    about: Evaluated,
    models: tuple[SampledModel, SampledModel],
    parts: Mapping[str, str],
) -> CollectedPairs:
    folder = config.feedback_settings().output / fingerprint_of(parts)[:12]
    require_replaceable(folder, COLLECTION)
    asked = [row for row in rows if row.policy != row.sft]
    alike = [
        VotedPair(prompt_id=row.prompt_id, policy=row.policy, sft=row.sft)
        for row in rows
        if row.policy == row.sft
    ]
    if not asked:
        raise DataError(
            f"all {len(rows)} pairs drawn are of two equal answers: policy and SFT model answer "
            "alike, so there is nothing to ask people about"
        )
    with exclusive(folder):
        if (folder / MANIFEST).is_file():
            return CollectedPairs(collection=read_collection(folder)[0], folder=folder)
        with replacing_directory(folder) as work:
            uris = (models[0].uri, models[1].uri)
            sides = [_pair(folder.name, n, row, uris, about) for n, row in enumerate(asked, 1)]
            write_records(work / PAIRS, [pair for pair, _ in sides])
            write_records(work / ORIGINS, [origin for _, origin in sides])
            write_records(work / ALIKE, alike)
            found = Collection(
                collection_id=folder.name,
                models=models,
                prompts=f"the answers that run {about.run_id} judged",
                prompts_sha256=parts["samples"],
                dataset_sha256="",
                settings=None,
                counts=_counts(rows, asked, about),
                pairs_sha256=sha256_of(work / PAIRS),
                git_commit=git_revision(Path()),
                evaluation=about,
            )
            write_record(work / MANIFEST, found)
    return CollectedPairs(collection=found, folder=folder)


def _counts(
    rows: Sequence[ComparedAnswer], asked: Sequence[ComparedAnswer], about: Evaluated
) -> Counts:
    return Counts(
        prompts=about.judged,
        heldout=0,
        unfitting=0,
        asked=about.drawn,
        resampled=0,
        indistinct=len(rows) - len(asked),
        unfinished=sum((not row.policy_finished) + (not row.sft_finished) for row in asked),
        pairs=len(asked),
    )


def _pair(
    name: str, number: int, row: ComparedAnswer, uris: tuple[str, str], about: Evaluated
) -> tuple[Comparison, Origin]:
    pair = Comparison(
        comparison_id=f"{name}-{number:05d}",
        prompt=row.prompt,
        response_a=row.policy,
        response_b=row.sft,
        votes=(),
        source=f"evaluated-{name}",
        line=number,
    )
    return on_drawn_sides(pair, prompt_id=row.prompt_id, models=uris, seed=about.seed)


def keep_with_evaluation(
    folder: Path, collection: Collection, about: Evaluated, labelled: Sequence[Comparison]
) -> int:
    """Keep the votes there are with the evaluation; return on how many pairs.

    Of the pairs of equal answers as large a part counts as of those that were asked about, so that
    both together stay a random sample of what was judged.

    Raises:
        RegistryError: MLflow does not answer, or the evaluation is gone.
    """
    origins = {row.comparison_id: row for row in read_records(folder / ORIGINS, Origin)}
    policy = collection.models[0].uri
    voted = [_voted(pair, origins[pair.comparison_id], policy) for pair in labelled if pair.votes]
    if not voted:
        return 0
    alike = read_records(folder / ALIKE, VotedPair)
    voted += alike[: round(len(alike) * len(voted) / len(labelled))]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "votes.jsonl"
        write_records(path, voted)
        named = path.rename(path.with_name(f"{folder.name}-{sha256_of(path)[:12]}.jsonl"))
        keep_votes(about.look, folder.name, named)
    return len(voted)


def _voted(pair: Comparison, origin: Origin, policy: str) -> VotedPair:
    won = {"a": 1.0, "tie": 0.5, "b": 0.0}
    first = origin.model_a == policy
    return VotedPair(
        prompt_id=origin.prompt_id,
        policy=pair.response_a if first else pair.response_b,
        sft=pair.response_b if first else pair.response_a,
        votes=tuple(
            OutcomeVote(
                annotator=vote.annotator,
                won=won[vote.choice] if first else 1.0 - won[vote.choice],
            )
            for vote in pair.votes
        ),
    )
