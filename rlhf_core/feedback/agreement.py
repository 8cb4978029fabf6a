"""How far those who voted on a collection agree: all of them, and each AI judge with people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_core.dataprep.votes.against_rest import CONFIDENCE, against_rest
from rlhf_core.dataprep.votes.agreement import alpha_estimate
from rlhf_core.dataprep.votes.vote_table import VoteTable
from rlhf_core.feedback.ballots import all_votes
from rlhf_core.feedback.collection import ORIGINS, Origin
from rlhf_core.schema import AI_JUDGE, Estimate, Vote
from rlhf_core.statistics.intervals import SHARE, Resampling, estimate_mean
from rlhf_core.storage.records import read_records


def votes_alpha(
    votes: Sequence[Sequence[Vote]], *, num_resamples: int, seed: int
) -> Estimate | None:
    """Return Krippendorff's alpha over all votes; None where it is not defined.

    Args:
        votes: on each comparison.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
    """
    if not votes:
        return None
    counts = _table(votes).counts(len(votes))
    return alpha_estimate(counts, num_resamples=num_resamples, seed=seed)


def judges_against_people(
    votes: Sequence[Sequence[Vote]], *, num_resamples: int, seed: int
) -> Mapping[str, Estimate]:
    """Return alpha between each AI judge and people, over the pairs both voted on.

    Args:
        votes: on each comparison.
        num_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        By judge; one that shares no pair with people, or none on which answers differ, is left out.
    """
    judges = sorted(
        {v.annotator for each in votes for v in each if v.annotator.startswith(AI_JUDGE)}
    )
    found = {}
    for judge in judges:
        own = [
            [v for v in each if v.annotator == judge or not v.annotator.startswith(AI_JUDGE)]
            for each in votes
        ]
        table = _table(own)
        rest = against_rest(table, [""] * len(own), num_resamples=num_resamples, seed=seed)
        place = table.names[judge]
        if not np.isnan(rest.alpha[place]):
            found[judge] = Estimate(
                value=float(rest.alpha[place]),
                low=float(rest.low[place]),
                high=float(rest.high[place]),
                num_samples=int(rest.num_shared[place]),
                confidence=CONFIDENCE,
            )
    return found


def choosers_against_votes(collection: Path) -> dict[str, Estimate]:
    """Return how often each reward model that chose the pairs was of the voters' mind.

    On pairs chosen because the models disagree, that is less than on pairs drawn at random.

    Args:
        collection: folder of the collection.

    Returns:
        By the model's URI: share of the pairs with more votes for one answer than for the other
        on which the model scored that answer higher; equal scores count as half. Empty where no
        models chose.
    """
    votes = all_votes(collection)
    right: dict[str, list[float]] = {}
    for origin in read_records(collection / ORIGINS, Origin):
        choices = [vote.choice for vote in votes.get(origin.comparison_id, ())]
        lead = choices.count("a") - choices.count("b")
        if lead:
            for model, probability in origin.probabilities.items():
                # A model that prefers neither is right by chance: half a time.
                said = 0.5 if probability == 0.5 else float((probability > 0.5) == (lead > 0))
                right.setdefault(model, []).append(said)
    return {m: estimate_mean(found, Resampling(), bounds=SHARE) for m, found in right.items()}


def _table(votes: Sequence[Sequence[Vote]]) -> VoteTable:
    table = VoteTable()
    for number, each in enumerate(votes):
        table.add(number, each)
    return table
