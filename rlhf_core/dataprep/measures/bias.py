"""Biases that poison a reward model: what predicts the label without reading the answer."""

import math
import re
import string
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.dataprep.ledger import Labelled
from rlhf_core.dataprep.measures.lexicon import STYLES
from rlhf_core.schema import Estimate, PreferencePair
from rlhf_core.statistics.clusters import (
    MAX_ROWS,
    auc,
    bootstrap,
    numbered,
    proportion,
)
from rlhf_core.statistics.resampling import Array, Ints

_NUM_BINS = 10
_MAX_WORDS = 15
_WORD = re.compile(r"[^\W\d_]{2,}")
_LETTERS = frozenset(string.ascii_lowercase)
_APART = {code: " " for code in range(128) if chr(code) not in _LETTERS}
"""Of text in lower case, all that is no letter."""


@dataclass(slots=True)
class StyleCounter:
    """Counts style habits and words of chosen and rejected responses, pair by pair."""

    dialogues: dict[DialogueKey, int] = field(default_factory=dict)
    """Dialogue to number, of the pairs below."""
    contrasts: dict[str, tuple["array[int]", "array[int]"]] = field(default_factory=dict)
    """Style to the dialogues of the pairs where one response has it alone, and 1 where that one was
    chosen, else 0."""
    chosen_words: Counter[str] = field(default_factory=Counter)
    """Word to chosen responses that hold it."""
    rejected_words: Counter[str] = field(default_factory=Counter)

    def add(self, pair: PreferencePair) -> None:
        """Count one pair."""
        chosen, rejected = pair.chosen.lower(), pair.rejected.lower()
        for name in STYLES:
            in_chosen = _has_style(name, chosen)
            if in_chosen != _has_style(name, rejected):
                key = dialogue_key(pair.prompt)
                dialogues, wins = self.contrasts.setdefault(name, (array("q"), array("b")))
                dialogues.append(self.dialogues.setdefault(key, len(self.dialogues)))
                wins.append(in_chosen)
        self.chosen_words.update(_words(chosen))
        self.rejected_words.update(_words(rejected))

    def estimates(self) -> dict[str, Estimate]:
        """Share of pairs that the response with a habit wins, where the other lacks it."""
        contrasts = {name: self.contrasts[name] for name in STYLES if name in self.contrasts}
        return {
            name: proportion(np.array(wins, dtype=np.float64), np.array(dialogues))
            for name, (dialogues, wins) in contrasts.items()
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


def _words(text: str) -> set[str]:
    """Different words of two letters or more of a text in lower case."""
    if not text.isascii():
        return set(_WORD.findall(text))
    words = set(text.translate(_APART).split())
    words -= _LETTERS
    return words


def _has_style(name: str, text: str) -> bool:
    pattern, parts = STYLES[name]
    for part in parts:
        if part in text:
            if pattern.pattern.startswith("^"):
                return _begins_a_line(pattern, text)
            return pattern.search(text) is not None
    return False


def _begins_a_line(pattern: re.Pattern[str], text: str) -> bool:
    """Tell whether a pattern of the beginning of lines is found, looking at no other place."""
    start = 0
    while pattern.match(text, start) is None:
        start = text.find("\n", start) + 1
        if not start:
            return False
    return True


def length_win_estimate(pairs: Labelled) -> Estimate:
    """Share of pairs that the longer response wins; equal lengths count one half."""
    return proportion((np.sign(_winner_differences(pairs)) + 1) / 2, _dialogues(pairs))


def first_win_estimate(pairs: Labelled) -> Estimate:
    """Share of pairs that the first response shown wins; one half where order has no say."""
    return proportion(pairs.a_won.astype(np.float64), _dialogues(pairs))


def length_auc_estimate(pairs: Labelled, seed: int) -> Estimate:
    """How well length alone predicts the label: area under the ROC curve.

    With D the winner's length less the loser's, over pairs i and j shown either way round:

        AUC = P(D_i > -D_j) + P(D_i = -D_j) / 2

    Returns:
        0.5 where length says nothing, 1 where it says everything; of at most 5,000 pairs.
    """
    rows = np.random.default_rng(seed).permutation(len(pairs))[:MAX_ROWS]
    differences, dialogues = _winner_differences(pairs)[rows], _dialogues(pairs)[rows]

    def length_auc(drawn: Ints) -> float:
        sample = differences[drawn]
        winners = np.repeat([True, False], len(sample))
        return auc(np.concatenate([sample, -sample]), winners)

    return bootstrap(length_auc, dialogues, seed)


def label_by_length(pairs: Labelled) -> list[tuple[float, float, int]]:
    """Return (mean length difference a - b, share that a wins, pairs) in bins of equal size."""
    lengths = pairs.num_chars.astype(np.float64)
    difference = lengths[:, 0] - lengths[:, 1]
    order = np.argsort(difference, kind="stable")
    return [
        (float(difference[part].mean()), float(pairs.a_won[part].mean()), len(part))
        for part in np.array_split(order, _NUM_BINS)
        if len(part)
    ]


def _winner_differences(pairs: Labelled) -> Array:
    lengths = pairs.num_chars.astype(np.float64)
    differences: Array = (lengths[:, 0] - lengths[:, 1]) * np.where(pairs.a_won, 1.0, -1.0)
    return differences


def _dialogues(pairs: Labelled) -> Ints:
    """[N] number of each pair's dialogue, in order of appearance."""
    return numbered(pairs.dialogue.tolist())
