"""People vote elsewhere: nothing is sent, and their votes are brought as files."""

from collections.abc import Sequence
from pathlib import Path

from rlhf_core.config import FileLabelerConfig
from rlhf_core.feedback.collection import PAIRS
from rlhf_core.feedback.labeler import Labeler
from rlhf_core.feedback.results import PushResult
from rlhf_core.schema import Comparison


class FileLabeler(Labeler):
    """Somebody who reads the collection's pairs; ``rlhf label pull --votes FILE`` has the votes."""

    def __init__(self, settings: FileLabelerConfig) -> None:
        """There is nothing to set."""
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
        """Say where the pairs are."""
        return PushResult(
            collection_id=folder.name,
            labeler=self._settings.kind,
            pairs=len(pairs),
            before=0,
            asked=0,
            waits=True,
            place=str(folder / PAIRS),
        )
