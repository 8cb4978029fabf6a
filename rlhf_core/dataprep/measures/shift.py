"""Prompt shift: can a classifier tell two sets of prompts apart, and by which words?"""

import heapq
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import UNSPACED, text_key, unit_interval
from rlhf_core.schema import Estimate
from rlhf_core.statistics.clusters import auc, bootstrap, ranked
from rlhf_core.statistics.resampling import Ints

_NUM_FOLDS = 5
_MAX_WORDS = 15
_WIDENING = math.sqrt(2)
"""Of the interval, since folds are no independent samples: of any two texts in different folds
each is in the other's training set, so that what they have in common counts twice. Where nothing
tells the sets apart, a score is a sum over the texts trained on, and the variance is twice that of
independent scores; where something does, it is less than twice. Bates, Hastie & Tibshirani (2024),
Cross-Validation: What Does It Estimate and How Well Does It Do It?, arXiv:2104.00673."""
_WORD = re.compile(r"\w+")
MIN_PROMPTS = 2 * _NUM_FOLDS
"""Fewer prompts than this on a side give no estimate."""


class PromptSample:
    """At most ``size`` different texts, chosen by hash: the same whatever their order."""

    def __init__(self, size: int) -> None:
        """Keep at most ``size`` texts."""
        self._size = size
        self._heap: list[tuple[float, str]] = []
        self._held: set[str] = set()

    def add(self, text: str) -> None:
        """Offer a text."""
        if text in self._held:
            return
        entry = (-unit_interval(0, "sample", text_key(text)), text)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            _, dropped = heapq.heappushpop(self._heap, entry)
            if dropped == text:
                return
            self._held.discard(dropped)
        self._held.add(text)

    def texts(self) -> list[str]:
        """Return the texts in order."""
        return sorted(self._held)


@dataclass(frozen=True, slots=True)
class Shift:
    """Outcome of a two-sample classifier test."""

    estimate: Estimate
    """AUC of telling the two sets apart: 0.5 the same distribution, 1 nothing in common."""
    words_first: list[str]
    """Words that mark the first set, strongest first."""
    words_second: list[str]


def prompt_shift(first: Sequence[str], second: Sequence[str], seed: int) -> Shift | None:
    """Train a classifier to tell two sets of prompts apart; judge it on folds it has not seen.

        AUC = sum_f pairs of fold f that its classifier orders rightly / sum_f pairs of fold f

    Lopez-Paz & Oquab (2017), Revisiting Classifier Two-Sample Tests, arXiv:1610.06545. A text in
    both sets goes to one of them by hash, so that equal sets give 0.5. Scores of two folds are not
    compared: each helped to train the other's classifier, which makes their pairs come out wrong
    more often than not. The interval is a bootstrap over texts at ``_WIDENING`` times its width.

    Args:
        first: texts of one set.
        second: texts of the other.
        seed: of the folds and of the bootstrap.

    Returns:
        None where a side has fewer than ``MIN_PROMPTS`` texts, or where most texts have no word
        that a classifier could learn from.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    one, other = _disjoint(first, second)
    if min(len(one), len(other)) < MIN_PROMPTS:
        return None
    texts = [*one, *other]
    # Every fold asks for the terms of nearly all texts.
    terms = {text: _terms(text) for text in texts}
    min_df = _rarest_term(list(terms.values()))
    if min_df is None:
        return None
    labels = np.array([True] * len(one) + [False] * len(other))
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=min_df, analyzer=terms.__getitem__)
    classifier = LogisticRegression(max_iter=300, class_weight="balanced")
    model = make_pipeline(vectorizer, classifier)
    folds = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=seed).split(texts, labels)
    splits = list(folds)
    scores = cross_val_predict(model, texts, labels, cv=splits, method="decision_function")
    fold = np.zeros(len(texts), dtype=np.int64)
    for number, (_, held_out) in enumerate(splits):
        fold[held_out] = number
    ranks = ranked(scores)
    model.fit(texts, labels)
    words = np.array(vectorizer.get_feature_names_out())
    order = np.argsort(classifier.coef_[0], kind="stable")
    return Shift(
        estimate=_widened(
            bootstrap(
                lambda rows: _auc_within(fold[rows], ranks[rows], labels[rows]),
                np.arange(len(texts)),
                seed,
            )
        ),
        words_first=words[order[::-1][:_MAX_WORDS]].tolist(),
        words_second=words[order[:_MAX_WORDS]].tolist(),
    )


def _auc_within(fold: Ints, ranks: Ints, labels: NDArray[np.bool_]) -> float:
    """AUC over the pairs whose two texts are of one fold; one half where there is no pair."""
    right = num_pairs = 0.0
    for number in range(_NUM_FOLDS):
        here = fold == number
        positive = labels[here]
        pairs = float(positive.sum() * (~positive).sum())
        right += pairs * auc(ranks[here], positive)
        num_pairs += pairs
    return right / num_pairs if num_pairs else 0.5


def _widened(estimate: Estimate) -> Estimate:
    """Return the estimate with each bound moved away from the value, within 0 and 1."""
    value = estimate.value
    low = max(0.0, value + _WIDENING * (estimate.low - value))
    high = min(1.0, value + _WIDENING * (estimate.high - value))
    return estimate.model_copy(update={"low": low, "high": high})


def _terms(text: str) -> list[str]:
    """Words; in scripts that put no spaces between words, single characters and pairs of them."""
    terms: list[str] = []
    for word in _WORD.findall(text.lower()):
        if UNSPACED.search(word) is None:
            terms.append(word)
        else:
            terms += [*word, *(word[i : i + 2] for i in range(len(word) - 1))]
    return terms


def _rarest_term(found: Sequence[list[str]]) -> int | None:
    """In how many texts a term must be to count: two, or one where no term is common enough.

    Every fold leaves four texts in five, and some term must be left in them. None where most texts
    have no term at all.
    """
    if 2 * sum(map(bool, found)) < len(found):
        return None
    most = max(Counter(term for terms in found for term in set(terms)).values())
    return 2 if most >= 2 + math.ceil(len(found) / _NUM_FOLDS) else 1


def _disjoint(first: Sequence[str], second: Sequence[str]) -> tuple[list[str], list[str]]:
    one, other = dict.fromkeys(first), dict.fromkeys(second)
    for text in [text for text in one if text in other]:
        lucky = unit_interval(0, "shared", text_key(text)) < 0.5
        del (other if lucky else one)[text]
    return list(one), list(other)
