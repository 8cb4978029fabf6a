"""Each annotator's record, and the careless ones by name."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlhf_core.dataprep.sources.rows import UNNAMED
from rlhf_core.dataprep.votes.against_rest import AgainstRest
from rlhf_core.dataprep.votes.vote_table import CHOICES, Floats, Ints, VoteTable

_SAME_SIDE_FRACTION = 0.9
_LEVEL = 0.01
"""One-sided level of the tests below. With thousands of annotators some fall by chance; the list
is a place to look, and no vote is dropped by it."""


@dataclass(frozen=True, slots=True)
class AnnotatorFacts:
    """One annotator's record."""

    annotator: str
    num_votes: int
    num_shared: int
    """Votes on comparisons that someone else voted on as well."""
    alpha: float | None
    """Krippendorff's alpha against the others: 0 at chance, 1 where they always agree."""
    low: float | None
    high: float | None
    """Bounds of the 98% bootstrap interval of ``alpha``."""
    reliability: float | None
    """Mean probability, by the model that decides who won, that the annotator's answers are right;
    None where nobody asked a model."""
    side: str
    """The answer given most."""
    side_fraction: float
    median_seconds: float | None
    careless: tuple[str, ...]
    """Why the annotator looks careless: ``at_chance``, ``same_side``, ``too_fast``."""


def annotator_facts(
    table: VoteTable,
    rest: AgainstRest,
    reliability: Mapping[str, float],
    *,
    min_votes: int,
    fast_fraction: float,
) -> list[AnnotatorFacts]:
    """Return every annotator's record, the most careless-looking first.

    *At chance* means that the interval of alpha against the rest reaches 0 and stays below
    everybody's median. *Same side* means 90% of the votes on one side, more than everybody's share
    of it can explain. *Too fast* means a median time below ``fast_fraction`` of everybody's. Votes
    without a name are many people's, of whom none is judged.

    Args:
        table: all votes.
        rest: agreement of each annotator with the others.
        reliability: of each annotator, by name.
        min_votes: annotators with fewer shared votes are listed but not judged.
        fast_fraction: share of everybody's median time.
    """
    if not table.names:
        return []
    _, annotator, choice = table.columns()
    answers = np.zeros((len(table.names), len(CHOICES)), dtype=np.int64)
    np.add.at(answers, (annotator, choice), 1)
    medians = _median_seconds(table)
    at_chance = (rest.num_shared >= min_votes) & _at_chance(rest, min_votes)
    judged = answers.sum(axis=1) >= min_votes
    everybody = answers.sum(axis=0) / answers.sum()
    pace = float(np.nanmedian(medians)) if np.isfinite(medians).any() else np.nan
    facts = []
    for number, name in enumerate(table.names):
        signs = {
            "at_chance": at_chance[number],
            "same_side": judged[number] and _one_sided(answers[number], everybody),
            "too_fast": judged[number] and medians[number] < fast_fraction * pace,
        }
        side = int(answers[number].argmax())
        facts.append(
            AnnotatorFacts(
                annotator=name,
                num_votes=int(answers[number].sum()),
                num_shared=int(rest.num_shared[number]),
                alpha=_known(rest.alpha[number]),
                low=_known(rest.low[number]),
                high=_known(rest.high[number]),
                reliability=reliability.get(name),
                side=CHOICES[side],
                side_fraction=float(answers[number, side] / answers[number].sum()),
                median_seconds=_known(medians[number]),
                careless=() if name == UNNAMED else tuple(s for s, seen in signs.items() if seen),
            )
        )
    return sorted(facts, key=_suspicion)


def _at_chance(rest: AgainstRest, min_votes: int) -> NDArray[np.bool_]:
    """[A] whether an annotator agrees no better than chance, and worse than most votes do."""
    judged = (rest.num_shared >= min_votes) & np.isfinite(rest.alpha)
    if not judged.any():
        return judged
    typical = np.median(np.repeat(rest.alpha[judged], rest.num_shared[judged]))
    found: NDArray[np.bool_] = (rest.low <= 0) & (rest.high < typical)
    return found


def _one_sided(answers: Ints, everybody: Floats) -> bool:
    from scipy import stats

    side = int(answers.argmax())
    total = int(answers.sum())
    if answers[side] / total < _SAME_SIDE_FRACTION or everybody[side] >= 1:
        return False
    test = stats.binomtest(int(answers[side]), total, float(everybody[side]), "greater")
    return bool(test.pvalue < _LEVEL / 10)


def _median_seconds(table: VoteTable) -> Floats:
    """[A] median time of each annotator, NaN without times."""
    seconds = np.array(table.seconds, dtype=np.float64)
    medians = np.full(len(table.names), np.nan)
    timed = np.isfinite(seconds)
    _, annotator, _ = table.columns()
    for person, times in pd.Series(seconds[timed]).groupby(annotator[timed]).median().items():
        medians[person] = times
    return medians


def _suspicion(facts: AnnotatorFacts) -> tuple[int, float, str]:
    """Most reasons first, then the surest low agreement."""
    ceiling = facts.high if facts.high is not None else np.inf
    return -len(facts.careless), ceiling, facts.annotator


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
