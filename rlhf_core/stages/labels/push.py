"""Ask for votes on a collection: simulated annotators and AI judges at once, people for later."""

import logging
from pathlib import Path

from rlhf_core.config import (
    AiLabelerConfig,
    FeedbackConfig,
    FileLabelerConfig,
    LabelStudioLabelerConfig,
    PipelineConfig,
    SimulatedLabelerConfig,
)
from rlhf_core.feedback.ballots import FOLDER, BallotBox
from rlhf_core.feedback.collection import PAIRS, find_collection, read_collection
from rlhf_core.feedback.results import PushResult
from rlhf_core.feedback.simulated import load_annotators, simulate
from rlhf_core.schema import Comparison
from rlhf_core.stages.labels.ai import ask_judge, judge_name, without_ballot
from rlhf_core.stages.labels.people import send_tasks
from rlhf_core.storage.folders import exclusive
from rlhf_core.trainers.progress import Progress

logger = logging.getLogger(__name__)


def push_labels(config: PipelineConfig, reference: str, *, again: bool = False) -> PushResult:
    """Ask for votes on the pairs of a collection that were not asked about yet.

    Every vote is on the disk before the next one counts, so that a killed push, repeated, asks only
    for what is missing.

    Args:
        config: settings, with a ``feedback`` section.
        reference: id or folder of the collection.
        again: ask an AI judge again about pairs on which its answer could not be read.

    Raises:
        ConfigError: there is no ``feedback`` section, or earlier votes were asked for otherwise.
        DataError: there is no such collection.
        LabelError: the labeler refuses or does not answer.
    """
    feedback = config.feedback_settings()
    folder = find_collection(reference, feedback.output)
    pairs = read_collection(folder)[1]
    with exclusive(folder / FOLDER):
        if isinstance(feedback.labeler, SimulatedLabelerConfig):
            result = _simulate(folder, pairs, feedback, feedback.labeler)
        elif isinstance(feedback.labeler, AiLabelerConfig):
            result = _ask_judge(folder, pairs, feedback, feedback.labeler, again=again)
        elif isinstance(feedback.labeler, LabelStudioLabelerConfig):
            result = _send(folder, pairs, feedback, feedback.labeler)
        else:
            result = _left_to_others(folder, len(pairs), feedback.labeler)
    labeler, asked = feedback.labeler.kind, result.asked
    logger.info("labels_pushed collection=%s labeler=%s asked=%d", folder.name, labeler, asked)
    return result


def _simulate(
    folder: Path,
    pairs: list[Comparison],
    feedback: FeedbackConfig,
    settings: SimulatedLabelerConfig,
) -> PushResult:
    annotators = load_annotators(settings.annotators)
    box = BallotBox(folder, settings.kind)
    missing = without_ballot(pairs, box)
    with box.opened({"annotators": settings.annotators, "seed": feedback.seed}) as keep:
        progress = Progress("votes", total=len(pairs), done=len(pairs) - len(missing))
        for pair in missing:
            keep(simulate(annotators, pair, feedback.seed))
            progress.advance({})
        progress.close()
    return PushResult(
        collection_id=folder.name,
        labeler=settings.kind,
        pairs=len(pairs),
        before=len(pairs) - len(missing),
        asked=len(missing),
        waits=False,
    )


def _ask_judge(
    folder: Path,
    pairs: list[Comparison],
    feedback: FeedbackConfig,
    settings: AiLabelerConfig,
    *,
    again: bool,
) -> PushResult:
    box = BallotBox(folder, judge_name(settings))
    asked, tokens = ask_judge(settings, box, pairs, seed=feedback.seed, again=again)
    return _judged(folder, box, pairs, asked, settings, tokens)


def _judged(
    folder: Path,
    box: BallotBox,
    pairs: list[Comparison],
    asked: int,
    settings: AiLabelerConfig,
    tokens: int,
) -> PushResult:
    ballots = box.read()
    given = [ballot for ballot in ballots if ballot.votes]
    dependent = sum(bool(ballot.order_dependent) for ballot in given)
    return PushResult(
        collection_id=folder.name,
        labeler=judge_name(settings),
        pairs=len(pairs),
        before=len(pairs) - asked,
        asked=asked,
        waits=False,
        without_vote=len(ballots) - len(given),
        order_dependent=dependent / len(given) if given else None,
        tokens=tokens or None,
    )


def _send(
    folder: Path,
    pairs: list[Comparison],
    feedback: FeedbackConfig,
    settings: LabelStudioLabelerConfig,
) -> PushResult:
    sent, place = send_tasks(folder, pairs, feedback, settings)
    return PushResult(
        collection_id=folder.name,
        labeler=settings.kind,
        pairs=len(pairs),
        before=len(pairs) - sent,
        asked=sent,
        waits=True,
        place=place,
    )


def _left_to_others(folder: Path, num_pairs: int, settings: FileLabelerConfig) -> PushResult:
    """Send nothing: somebody else asks about the pairs, and brings a file of votes."""
    return PushResult(
        collection_id=folder.name,
        labeler=settings.kind,
        pairs=num_pairs,
        before=num_pairs,
        asked=0,
        waits=True,
        place=str(folder / PAIRS),
    )
