"""Biases that poison a reward model: what predicts the label without reading the answer."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rlhf_core.dataprep.ledger import Entry
from rlhf_core.schema import Estimate, PreferencePair

Floats = NDArray[np.float64]

_CONFIDENCE = 0.95
_NUM_BINS = 10
_NUM_RESAMPLES = 300
_MAX_AUC_ROWS = 5_000
_MAX_WORDS = 15
_WORD = re.compile(r"[^\W\d_]{2,}")

STYLES: dict[str, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "list": (re.compile(r"^[^\S\n]*(?:[-*•]|\d+[.)])\s", re.MULTILINE), ("-", "*", "•", ".", ")")),
    "exclamation": (re.compile("!"), ("!",)),
    "question": (re.compile(r"\?"), ("?",)),
    "hedge": (
        re.compile(r"\b(?:perhaps|maybe|might|possibly|i think|i believe)\b"),
        ("perhaps", "maybe", "might", "possibly", "i think", "i believe"),
    ),
    "apology": (re.compile(r"\b(?:sorry|apologi[sz]e)\b"), ("sorry", "apologi")),
    "refusal": (
        re.compile(r"\b(?:i can(?:no|')t|i am unable|i'm unable|i won't)\b"),
        ("i can", "unable", "won't"),
    ),
    "flattery": (re.compile(r"\b(?:great|good|excellent|wonderful) question\b"), (" question",)),
    "disclaimer": (re.compile(r"\bas an ai\b|\bi'm (?:just )?an ai\b"), ("an ai",)),
}
"""Habits of style that win votes without being better answers: what they look like in lower case,
and parts one of which a text must hold, for those are quick to look for."""


@dataclass(slots=True)
class StyleCounter:
    """Counts style habits and words of chosen and rejected responses, pair by pair."""

    wins: Counter[str] = field(default_factory=Counter)
    """Style to pairs where only the chosen response has it."""
    losses: Counter[str] = field(default_factory=Counter)
    chosen_words: Counter[str] = field(default_factory=Counter)
    """Word to chosen responses that hold it."""
    rejected_words: Counter[str] = field(default_factory=Counter)

    def add(self, pair: PreferencePair) -> None:
        """Count one pair."""
        chosen, rejected = pair.chosen.lower(), pair.rejected.lower()
        for name in STYLES:
            in_chosen = _has_style(name, chosen)
            if in_chosen != _has_style(name, rejected):
                (self.wins if in_chosen else self.losses)[name] += 1
        self.chosen_words.update(set(_WORD.findall(chosen)))
        self.rejected_words.update(set(_WORD.findall(rejected)))

    def estimates(self) -> dict[str, Estimate]:
        """Share of pairs that the response with a habit wins, where the other lacks it."""
        return {
            name: proportion(self.wins[name], self.wins[name] + self.losses[name])
            for name in STYLES
            if self.wins[name] + self.losses[name]
        }

    def telling_words(self) -> dict[str, list[tuple[str, float]]]:
        """Words that tell chosen from rejected, by z-score of their log-odds.

            z = (log odds in chosen - log odds in rejected) / standard deviation

        with the pooled counts as an informative Dirichlet prior; Monroe, Colaresi & Quinn (2008),
        Fightin' Words, eq. 16 and 22.
        """
        chosen, rejected = self.chosen_words, self.rejected_words
        pooled = chosen + rejected
        total = pooled.total()
        sizes = [(part, part.total()) for part in (chosen, rejected)]
        scores = {}
        for word, count in pooled.items():
            prior = 100 * count / total
            if count < 10 or count == total:  # Where there is one word, it tells nothing.
                continue
            odds = [
                (part[word] + prior) / (size + 100 - part[word] - prior) for part, size in sizes
            ]
            deviation = math.sqrt(1 / (chosen[word] + prior) + 1 / (rejected[word] + prior))
            scores[word] = math.log(odds[0] / odds[1]) / deviation
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        return {
            "chosen": [item for item in ranked[:_MAX_WORDS] if item[1] > 0],
            "rejected": [item for item in ranked[::-1][:_MAX_WORDS] if item[1] < 0],
        }


def _has_style(name: str, text: str) -> bool:
    pattern, parts = STYLES[name]
    return any(part in text for part in parts) and pattern.search(text) is not None


def length_win_estimate(entries: Sequence[Entry]) -> Estimate:
    """Share of pairs that the longer response wins; equal lengths count one half."""
    differences = _winner_differences(entries)
    return proportion(
        float(np.sum(differences > 0) + 0.5 * np.sum(differences == 0)), len(differences)
    )


def first_win_estimate(entries: Sequence[Entry]) -> Estimate:
    """Share of pairs that the first response shown wins; one half where order has no say."""
    return proportion(sum(entry.a_beats_b > 0.5 for entry in entries), len(entries))


def length_auc_estimate(entries: Sequence[Entry], seed: int) -> Estimate:
    """How well length alone predicts the label: area under the ROC curve.

    With D the winner's length less the loser's, over pairs i and j shown either way round:

        AUC = P(D_i > -D_j) + P(D_i = -D_j) / 2

    Returns:
        0.5 where length says nothing, 1 where it says everything; percentile bootstrap over at
        most 5,000 pairs.
    """
    rng = np.random.default_rng(seed)
    differences = _winner_differences(entries)
    if len(differences) > _MAX_AUC_ROWS:
        differences = rng.choice(differences, _MAX_AUC_ROWS, replace=False)
    resamples = [
        auc(sample, -sample)
        for sample in rng.choice(differences, (_NUM_RESAMPLES, len(differences)))
    ]
    return percentile_estimate(auc(differences, -differences), resamples, len(differences))


def label_by_length(entries: Sequence[Entry]) -> list[tuple[float, float, int]]:
    """Return (mean length difference a - b, share that a wins, pairs) in bins of equal size."""
    lengths = np.array([entry.num_chars for entry in entries], dtype=np.float64).reshape(-1, 2)
    difference = lengths[:, 0] - lengths[:, 1]
    won = np.array([entry.a_beats_b > 0.5 for entry in entries], dtype=np.float64)
    order = np.argsort(difference, kind="stable")
    return [
        (float(difference[part].mean()), float(won[part].mean()), len(part))
        for part in np.array_split(order, _NUM_BINS)
        if len(part)
    ]


def proportion(successes: float, total: int) -> Estimate:
    """Return a share with its Wilson interval (Wilson 1927).

    centre +- half, where with p = successes / total and z the normal quantile
    centre = (p + z^2 / 2n) / (1 + z^2 / n)
    half   = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)
    """
    z = float(stats.norm.ppf((1 + _CONFIDENCE) / 2))
    share = successes / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return Estimate(
        value=share,
        low=max(0.0, centre - half),
        high=min(1.0, centre + half),
        num_samples=total,
        confidence=_CONFIDENCE,
    )


def percentile_estimate(value: float, resamples: Sequence[float], num_samples: int) -> Estimate:
    """Return a value with its percentile bootstrap interval, which always holds the value.

    Args:
        value: on the sample itself.
        resamples: the same on each resample.
        num_samples: size of the sample.
    """
    low, high = np.quantile(resamples, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Estimate(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        num_samples=num_samples,
        confidence=_CONFIDENCE,
    )


def auc(positives: Floats, negatives: Floats) -> float:
    """Probability that a positive scores above a negative, equal scores counting one half."""
    ranks = stats.rankdata(np.concatenate([positives, negatives]))
    top = ranks[: len(positives)].sum() - len(positives) * (len(positives) + 1) / 2
    return float(top / (len(positives) * len(negatives)))


def _winner_differences(entries: Sequence[Entry]) -> Floats:
    lengths = np.array([entry.num_chars for entry in entries], dtype=np.float64).reshape(-1, 2)
    sign = np.array([1.0 if entry.a_beats_b > 0.5 else -1.0 for entry in entries])
    differences: Floats = (lengths[:, 0] - lengths[:, 1]) * sign
    return differences
