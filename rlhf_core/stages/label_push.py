"""Ask for votes on a collection: simulated annotators and AI judges at once, people for later."""

import logging
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from rlhf_core.adapters.chat import open_chat
from rlhf_core.config import (
    AiLabelerConfig,
    FeedbackConfig,
    LabelStudioLabelerConfig,
    PipelineConfig,
    SimulatedLabelerConfig,
)
from rlhf_core.dataprep.publish import exclusive
from rlhf_core.feedback.ballots import FOLDER, BallotBox
from rlhf_core.feedback.collection import find_collection, read_collection
from rlhf_core.feedback.judge import INSTRUCTIONS, Judge
from rlhf_core.feedback.results import PushResult
from rlhf_core.feedback.simulated import load_annotators, simulate
from rlhf_core.schema import Comparison
from rlhf_core.stages.label_people import send_tasks

logger = logging.getLogger(__name__)


def push_labels(config: PipelineConfig, reference: str) -> PushResult:
    """Ask for votes on the pairs of a collection that were not asked about yet.

    Every vote is on the disk before the next one counts, so that a killed push, repeated, asks only
    for what is missing.

    Args:
        config: settings, with a ``feedback`` section.
        reference: id or folder of the collection.

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
            result = _ask_judge(folder, pairs, feedback, feedback.labeler)
        else:
            result = _send(folder, pairs, feedback, feedback.labeler)
    labeler, asked = feedback.labeler.kind, result.asked
    logger.info("labels_pushed collection=%s labeler=%s asked=%d", folder.name, labeler, asked)
    return result


def judge_name(settings: AiLabelerConfig) -> str:
    """Return the annotator that the judge's votes are by."""
    return f"ai:{settings.model}"


def _simulate(
    folder: Path,
    pairs: list[Comparison],
    feedback: FeedbackConfig,
    settings: SimulatedLabelerConfig,
) -> PushResult:
    annotators = load_annotators(settings.annotators)
    box = BallotBox(folder, settings.kind)
    missing = _without_ballot(pairs, box)
    with box.opened({"annotators": settings.annotators, "seed": feedback.seed}) as keep:
        for pair in tqdm(missing, desc="votes", unit=" pairs", disable=None):
            keep(simulate(annotators, pair, feedback.seed))
    return PushResult(
        collection_id=folder.name,
        labeler=settings.kind,
        pairs=len(pairs),
        before=len(pairs) - len(missing),
        asked=len(missing),
        waits=False,
    )


def _ask_judge(
    folder: Path, pairs: list[Comparison], feedback: FeedbackConfig, settings: AiLabelerConfig
) -> PushResult:
    box = BallotBox(folder, judge_name(settings))
    missing = _without_ballot(pairs, box)
    decides = ("model", "principles", "principles_per_pair", "temperature", "max_tokens")
    asked = {**settings.model_dump(mode="json", include=set(decides)), "seed": feedback.seed}
    with box.opened({**asked, "instructions": INSTRUCTIONS}) as keep, open_chat(settings) as chat:
        judge = Judge(
            chat.ask,
            annotator=judge_name(settings),
            principles=settings.principles,
            principles_per_pair=settings.principles_per_pair,
            max_attempts=settings.max_attempts,
            seed=feedback.seed,
        )
        with ThreadPoolExecutor(max_workers=settings.concurrency) as pool:
            futures = [pool.submit(judge.compare, pair) for pair in missing]
            try:
                done = as_completed(futures)
                num_there = len(pairs) - len(missing)
                for future in tqdm(done, "votes", len(pairs), initial=num_there, disable=None):
                    keep(future.result())
            except BaseException:
                chat.stop()
                pool.shutdown(cancel_futures=True)
                raise
    return _judged(folder, box, pairs, len(missing), settings, chat.num_tokens)


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


def _without_ballot(pairs: list[Comparison], box: BallotBox) -> list[Comparison]:
    there = {ballot.comparison_id for ballot in box.read()}
    return [pair for pair in pairs if pair.comparison_id not in there]
