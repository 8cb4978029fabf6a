"""Simulated annotators vote at once: a function that the settings name."""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rlhf_core.config import SimulatedLabelerConfig
from rlhf_core.config.functions import load_function
from rlhf_core.feedback.ballots import Ballot, BallotBox
from rlhf_core.feedback.labeler import Labeler
from rlhf_core.feedback.results import PushResult
from rlhf_core.schema import Comparison, Conversation, Vote
from rlhf_core.trainers.progress import Progress

Annotators = Callable[[random.Random, Conversation, str, str], Iterable[Vote]]


class SimulatedLabeler(Labeler):
    """A function of the pair and a generator of random numbers."""

    def __init__(self, settings: SimulatedLabelerConfig) -> None:
        """Name the function; it is imported when it is first asked."""
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
        """Have every pair voted on that was not yet; the votes depend on seed and pair alone.

        Raises:
            ConfigError: there is no such function, or it was another one before.
        """
        spec = self._settings.annotators
        annotators: Annotators = load_function("feedback.labeler.annotators", spec)
        box = BallotBox(folder, self._settings.kind)
        missing = box.without_ballot(pairs)
        with box.opened({"annotators": spec, "seed": seed}) as keep:
            progress = Progress("votes", total=len(pairs), done=len(pairs) - len(missing))
            for pair in missing:
                rng = random.Random(f"{seed}:{pair.comparison_id}")
                votes = annotators(rng, pair.prompt, pair.response_a, pair.response_b)
                keep(Ballot(comparison_id=pair.comparison_id, votes=tuple(votes)))
                progress.advance({})
            progress.close()
        return PushResult(
            collection_id=folder.name,
            labeler=self._settings.kind,
            pairs=len(pairs),
            before=len(pairs) - len(missing),
            asked=len(missing),
            waits=False,
        )
