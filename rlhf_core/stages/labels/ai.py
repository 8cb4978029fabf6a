"""Asking an AI judge about pairs: several at once, each answer on the disk before the next."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from rlhf_core.adapters.endpoints.chat import open_chat
from rlhf_core.config import AiLabelerConfig
from rlhf_core.errors import LabelError, QuestionRefusedError
from rlhf_core.feedback.ballots import Ballot, BallotBox
from rlhf_core.feedback.judge import INSTRUCTIONS, Judge
from rlhf_core.feedback.labeler import Labeler
from rlhf_core.feedback.results import PushResult
from rlhf_core.schema import AI_JUDGE, Comparison
from rlhf_core.trainers.progress import Progress

_REFUSALS = 10
"""Pairs refused one after the other that stop a push: no pair is at fault then."""
_DECIDES = ("model", "principles", "principles_per_pair", "temperature", "max_tokens")
"""Settings that decide what is answered."""


class AiLabeler(Labeler):
    """A language model that is asked about each pair in both orders."""

    def __init__(self, settings: AiLabelerConfig) -> None:
        """Name the endpoint; nothing is asked of it yet."""
        self._settings = settings

    def push(
        self,
        folder: Path,
        pairs: Sequence[Comparison],
        *,
        seed: int,
        votes_per_pair: int,
        again: bool,
    ) -> PushResult:
        """Ask about the pairs without a ballot; ``again``: about those without a vote, too."""
        box = BallotBox(folder, judge_name(self._settings))
        asked, tokens = ask_judge(self._settings, box, pairs, seed=seed, again=again)
        ballots = box.read()
        given = [ballot for ballot in ballots if ballot.votes]
        dependent = sum(bool(ballot.order_dependent) for ballot in given)
        return PushResult(
            collection_id=folder.name,
            labeler=judge_name(self._settings),
            pairs=len(pairs),
            before=len(pairs) - asked,
            asked=asked,
            waits=False,
            without_vote=len(ballots) - len(given),
            order_dependent=dependent / len(given) if given else None,
            tokens=tokens or None,
        )


def judge_name(settings: AiLabelerConfig) -> str:
    """Return the annotator that the judge's votes are by."""
    return f"{AI_JUDGE}{settings.model}"


def what_is_asked(settings: AiLabelerConfig) -> dict[str, object]:
    """Return all of the settings that decides what an AI judge answers, and its instructions."""
    decides = settings.model_dump(mode="json", include=set(_DECIDES))
    return {**decides, "instructions": INSTRUCTIONS}


def ask_judge(
    settings: AiLabelerConfig,
    box: BallotBox,
    pairs: Sequence[Comparison],
    *,
    seed: int,
    again: bool = False,
) -> tuple[int, int]:
    """Ask about the pairs without a ballot in the box; return how many, and the tokens it took.

    Args:
        settings: of the judge.
        box: where the ballots are kept.
        pairs: those asked about.
        seed: of the principles drawn for each pair.
        again: ask about pairs without a readable answer once more.

    Raises:
        ConfigError: the ballots in the box were asked for otherwise.
        LabelError: the endpoint refuses or does not answer.
    """
    missing = box.without_ballot(pairs, again=again)
    with box.opened({**what_is_asked(settings), "seed": seed}) as keep, open_chat(settings) as chat:
        judge = Judge(
            chat.ask,
            annotator=judge_name(settings),
            principles=settings.principles,
            principles_per_pair=settings.principles_per_pair,
            max_attempts=settings.max_attempts,
            seed=seed,
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
    return len(missing), chat.num_tokens


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
