"""Each annotator against the rest, and the careless ones by name."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from rlhf_core.dataprep.rows import UNNAMED
from rlhf_core.dataprep.votes import CHOICES, Floats, Ints, VoteTable

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
    kappa: float | None
    """Agreement with the others beyond chance: 0 at chance, 1 where they always agree."""
    low: float | None
    high: float | None
    """Bounds of a 98% normal interval of ``kappa``."""
    side: str
    """The answer given most."""
    side_fraction: float
    median_seconds: float | None
    careless: tuple[str, ...]
    """Why the annotator looks careless: ``at_chance``, ``same_side``, ``too_fast``."""


def annotator_facts(
    table: VoteTable, num_comparisons: int, *, min_votes: int, fast_fraction: float
) -> list[AnnotatorFacts]:
    """Return every annotator's record, the most careless-looking first.

    Agreement with the rest, for one annotator over the comparisons they share with others:

        p = mean share of the other votes that equal theirs
        e = sum_c P(they say c) * P(anybody says c)
        kappa = (p - e) / (1 - e)

    *At chance* means that kappa's interval reaches 0 and stays below everybody's median. *Same
    side* means 90% of the votes on one side, more than everybody's share of it can explain. *Too
    fast* means a median time below ``fast_fraction`` of everybody's. Votes without a name are many
    people's, of whom none is judged.

    Args:
        table: all votes.
        num_comparisons: comparisons the table counts.
        min_votes: annotators with fewer shared votes are listed but not judged.
        fast_fraction: share of everybody's median time.
    """
    if not table.names:
        return []
    kappa, margin, shared = _kappas(table, num_comparisons)
    _, annotator, choice = table.columns()
    answers = np.zeros((len(table.names), len(CHOICES)), dtype=np.int64)
    np.add.at(answers, (annotator, choice), 1)
    medians = _median_seconds(table)
    typical = _typical(kappa, shared, min_votes)
    everybody = answers.sum(axis=0) / answers.sum()
    pace = float(np.nanmedian(medians)) if np.isfinite(medians).any() else np.nan
    facts = []
    for number, name in enumerate(table.names):
        reasons = []
        if shared[number] >= min_votes and _at_chance(kappa[number], margin[number], typical):
            reasons.append("at_chance")
        if answers[number].sum() >= min_votes and _one_sided(answers[number], everybody):
            reasons.append("same_side")
        if answers[number].sum() >= min_votes and medians[number] < fast_fraction * pace:
            reasons.append("too_fast")
        side = int(answers[number].argmax())
        facts.append(
            AnnotatorFacts(
                annotator=name,
                num_votes=int(answers[number].sum()),
                num_shared=int(shared[number]),
                kappa=_known(kappa[number]),
                low=_known(kappa[number] - margin[number]),
                high=_known(kappa[number] + margin[number]),
                side=CHOICES[side],
                side_fraction=float(answers[number, side] / answers[number].sum()),
                median_seconds=_known(medians[number]),
                careless=() if name == UNNAMED else tuple(reasons),
            )
        )
    return sorted(facts, key=_suspicion)


def _kappas(table: VoteTable, num_comparisons: int) -> tuple[Floats, Floats, Ints]:
    """Return [A] kappa, [A] half-width of its interval, [A] shared votes; NaN where undefined."""
    comparison, annotator, choice = table.columns()
    counts = table.counts(num_comparisons)
    others = counts.sum(axis=1)[comparison] - 1
    use = others > 0
    comparison, annotator, choice, others = (
        column[use] for column in (comparison, annotator, choice, others)
    )
    size = len(table.names)
    agree = (counts[comparison, choice] - 1) / others
    shared = np.bincount(annotator, minlength=size)
    pool = np.bincount(choice, minlength=len(CHOICES)) / max(len(choice), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(annotator, weights=agree, minlength=size) / shared
        square = np.bincount(annotator, weights=agree**2, minlength=size) / shared
        chance = np.bincount(annotator, weights=pool[choice], minlength=size) / shared
        spread = np.sqrt(np.maximum(square - mean**2, 0) / np.maximum(shared - 1, 1))
        kappa = (mean - chance) / (1 - chance)
        margin = stats.norm.ppf(1 - _LEVEL) * spread / (1 - chance)
    return kappa, margin, shared


def _typical(kappa: Floats, shared: Ints, min_votes: int) -> float:
    """Median kappa over the votes of annotators who can be judged."""
    judged = (shared >= min_votes) & np.isfinite(kappa)
    return float(np.median(np.repeat(kappa[judged], shared[judged]))) if judged.any() else np.nan


def _at_chance(kappa: float, margin: float, typical: float) -> bool:
    return bool(kappa - margin <= 0 and kappa + margin < typical)


def _one_sided(answers: Ints, everybody: Floats) -> bool:
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
