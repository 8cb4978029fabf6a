"""Ask for votes on a collection: simulated annotators and AI judges at once, people for later."""

import logging

from rlhf_core.config import PipelineConfig
from rlhf_core.feedback.ballots import FOLDER
from rlhf_core.feedback.collection import find_collection, read_collection
from rlhf_core.feedback.results import PushResult
from rlhf_core.stages.labels.labelers import labeler_of
from rlhf_core.storage.folders import exclusive

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
        result = labeler_of(feedback.labeler).push(
            folder,
            pairs,
            seed=feedback.seed,
            votes_per_pair=feedback.votes_per_pair,
            again=again,
        )
    labeler, asked = feedback.labeler.kind, result.asked
    logger.info("labels_pushed collection=%s labeler=%s asked=%d", folder.name, labeler, asked)
    return result
