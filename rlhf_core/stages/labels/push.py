"""Ask for votes on a collection: simulated annotators and AI judges at once, people for later."""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from rlhf_core.adapters.chat import open_chat
from rlhf_core.config import (
    AiLabelerConfig,
    FeedbackConfig,
    LabelStudioLabelerConfig,
    PipelineConfig,
    SimulatedLabelerConfig,
)
from rlhf_core.errors import LabelError, QuestionRefusedError
from rlhf_core.feedback.ballots import FOLDER, Ballot, BallotBox
from rlhf_core.feedback.collection import find_collection, read_collection
from rlhf_core.feedback.judge import INSTRUCTIONS, Judge
from rlhf_core.feedback.results import PushResult
from rlhf_core.feedback.simulated import load_annotators, simulate
from rlhf_core.schema import AI_JUDGE, Comparison
from rlhf_core.stages.labels.people import send_tasks
from rlhf_core.storage.folders import exclusive
from rlhf_core.trainers.progress import Progress

logger = logging.getLogger(__name__)

_REFUSALS = 10
"""Pairs refused one after the other that stop a push: no pair is at fault then."""


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
        else:
            result = _send(folder, pairs, feedback, feedback.labeler)
    labeler, asked = feedback.labeler.kind, result.asked
    logger.info("labels_pushed collection=%s labeler=%s asked=%d", folder.name, labeler, asked)
    return result


def judge_name(settings: AiLabelerConfig) -> str:
    """Return the annotator that the judge's votes are by."""
    return f"{AI_JUDGE}{settings.model}"


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
    missing = _without_ballot(pairs, box, again=again)
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
        progress = Progress("votes", total=len(pairs), done=len(pairs) - len(missing))
        with ThreadPoolExecutor(max_workers=settings.concurrency) as pool:
            futures = {pool.submit(judge.compare, pair): pair for pair in missing}
            try:
                for ballot in _as_they_come(futures):
                    keep(ballot)
                    progress.advance({})
            except BaseException:
                chat.stop()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                progress.close()
    return _judged(folder, box, pairs, len(missing), settings, chat.num_tokens)


def _as_they_come(futures: Mapping[Future[Ballot], Comparison]) -> Iterator[Ballot]:
    """Yield ballots; a pair that is refused where others are answered is one without a vote.

    Raises:
        LabelError: too many are refused one after the other, or all.
    """
    refused: list[Ballot] = []
    answered = False
    for future in as_completed(futures):
        try:
            ballot = future.result()
        except QuestionRefusedError as error:
            name = futures[future].comparison_id
            refused.append(Ballot(comparison_id=name, problem=str(error)))
            if len(refused) == _REFUSALS:
                raise
            continue
        answered = True
        yield from refused
        refused.clear()
        yield ballot
    if refused and not answered:
        raise LabelError(refused[-1].problem)
    yield from refused


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


def _without_ballot(
    pairs: list[Comparison], box: BallotBox, *, again: bool = False
) -> list[Comparison]:
    there = {ballot.comparison_id for ballot in box.read() if ballot.votes or not again}
    return [pair for pair in pairs if pair.comparison_id not in there]
