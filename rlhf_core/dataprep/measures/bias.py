"""Biases that poison a reward model: what predicts the label without reading the answer."""

import math

import numpy as np

from rlhf_core.dataprep.ledger import Labelled
from rlhf_core.dataprep.measures.lexicon import STYLES
from rlhf_core.dataprep.measures.style import StyleCounter
from rlhf_core.schema import Estimate
from rlhf_core.statistics.clusters import (
    MAX_ROWS,
    auc,
    bootstrap,
    numbered,
    proportion,
    ranked,
)
from rlhf_core.statistics.resampling import Array, Ints

_NUM_BINS = 10
_MAX_WORDS = 15


def style_estimates(styles: StyleCounter) -> dict[str, Estimate]:
    """Share of pairs that the response with a habit wins, where the other lacks it."""
    contrasts = {name: styles.contrasts[name] for name in STYLES if name in styles.contrasts}
    return {
        name: proportion(np.array(wins, dtype=np.float64), np.array(dialogues))
        for name, (dialogues, wins) in contrasts.items()
    }


def telling_words(styles: StyleCounter) -> dict[str, list[tuple[str, float]]]:
    """Words that tell chosen from rejected, by z-score of their log-odds.

        z = (log odds in chosen - log odds in rejected) / standard deviation

    with the pooled counts as an informative Dirichlet prior; Monroe, Colaresi & Quinn (2008),
    Fightin' Words, eq. 16 and 22.
    """
    chosen, rejected = styles.chosen_words, styles.rejected_words
    pooled = chosen + rejected
    total = pooled.total()
    sizes = [(part, part.total()) for part in (chosen, rejected)]
    scores = {}
    for word, count in pooled.items():
        prior = 100 * count / total
        if count < 10 or count == total:  # Where there is one word, it tells nothing.
            continue
        odds = [(part[word] + prior) / (size + 100 - part[word] - prior) for part, size in sizes]
        deviation = math.sqrt(1 / (chosen[word] + prior) + 1 / (rejected[word] + prior))
        scores[word] = math.log(odds[0] / odds[1]) / deviation
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return {
        "chosen": [item for item in ranked[:_MAX_WORDS] if item[1] > 0],
        "rejected": [item for item in ranked[::-1][:_MAX_WORDS] if item[1] < 0],
    }


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
    ranks = np.split(ranked(np.concatenate([differences, -differences])), 2)

    def length_auc(drawn: Ints) -> float:
        winners = np.repeat([True, False], len(drawn))
        return auc(np.concatenate([part[drawn] for part in ranks]), winners)

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
