"""The port of labelling tools: all that push, pull and the listener ask of whoever votes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rlhf_core.feedback.results import PushResult
from rlhf_core.schema import Comparison


class Labeler(Protocol):
    """Whoever says which of two answers is better; the section of the settings makes it.

    Votes go into a ``BallotBox`` of the collection, in the labeler's own name: at once, where they
    are given at once, or when they are pulled.
    """

    def push(
        self,
        folder: Path,
        pairs: Sequence[Comparison],
        *,
        seed: int,
        votes_per_pair: int,
        again: bool,
    ) -> PushResult:
        """Ask about the pairs that were not asked about yet.

        Args:
            folder: of the collection; whoever calls this holds its lock.
            pairs: all of its pairs.
            seed: of what is drawn for a pair: sides, principles, votes.
            votes_per_pair: votes that a pair needs.
            again: ask once more where no answer could be read.

        Raises:
            ConfigError: earlier votes were asked for otherwise.
            LabelError: the tool refuses or does not answer.
        """

    def pull(self, folder: Path, pairs: Sequence[Comparison]) -> None:
        """Put into the box what was said since; nothing, where a push has had all answers.

        Raises:
            DataError: nothing was asked yet, or an answer cannot be read.
            LabelError: the tool does not answer.
        """

    def sent_collections(self, output: Path) -> Mapping[str, int] | None:
        """Return the collections of a folder that the tool tells of when there are votes.

        Returns:
            Name of each to the number of the project by which the tool names it; None where the
            tool tells of nothing.
        """
        return None
