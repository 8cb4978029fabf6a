"""Which language a text is in, asked of py3langid: naive Bayes over byte n-grams, 140 languages.

Lui & Baldwin (2012), langid.py: An Off-the-shelf Language Identification Tool.
"""

import re
import tempfile
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from rlhf_core.dataprep.cleaning.addresses import without_addresses
from rlhf_core.storage.full_disk import writing

_WORD = re.compile(r"[^\W\d_]+")
_LETTER_OF_ANOTHER_SCRIPT = re.compile(r"[^\W\d_\u0041-\u024f\u1e00-\u1eff]")
_MIN_WORDS = 10
_MIN_LETTERS = 10
"""Enough of a script that is not Latin: Chinese and Japanese put no space between words."""
_READ_CHARACTERS = 2_000
"""Of a longer text its beginning is read: certainty does not grow any more, time does."""
_MIN_SHARE = 0.5
_MAX_SHARE_OF_OURS = 0.05
"""Near relatives share the probability: Indonesian and Malay are each at most likely, and still
surely no English."""
_CLEARED_SHARE = _MAX_SHARE_OF_OURS + 0.01
"""Sums of many texts at once are rounded in another order: this far above the limit none is."""
_TEXTS_AT_ONCE = 64
"""Whose counts lie side by side, some thousand kinds of n-grams each."""
_FEWEST_AT_ONCE = 64
"""Of fewer, the steps of the walk cost as much as they save; one text alone takes nine times as
long as the library does."""
_MIN_COMPARED_WORDS, _SURE, _POSSIBLE = 4, 0.9, 0.02
"""Of texts that are compared with others. Measured on answers of the demo and on HH-RLHF."""


@cache
def _identifier() -> LanguageIdentifier:
    with writing(Path(tempfile.gettempdir())):  # it unpacks its model to a file there
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known_languages() -> frozenset[str]:
    """Return the ISO 639 codes that can be detected."""
    return frozenset(_identifier().labels)


def other_language(text: str, allowed: frozenset[str]) -> str | None:
    """Return the language of ``text`` where it surely is none of ``allowed``; None in doubt.

    Short texts, code and lists of names give no answer, so they stay.

    Args:
        text: any text.
        allowed: ISO 639 codes, all among ``known_languages()``.
    """
    text = without_addresses(text)[:_READ_CHARACTERS]
    words = _WORD.findall(text)
    if len(words) < _MIN_WORDS and len(_LETTER_OF_ANOTHER_SCRIPT.findall(text)) < _MIN_LETTERS:
        return None
    ranked = _identifier().rank(text)
    best, share = ranked[0]
    ours = sum(part for language, part in ranked if language in allowed)
    return best if share >= _MIN_SHARE and ours <= _MAX_SHARE_OF_OURS else None


def surely_allowed(texts: Sequence[str], allowed: frozenset[str]) -> list[bool]:
    """Say of which texts ``other_language`` gives None, as far as that is quick to tell.

    All texts walk through the identifier's automaton together, a byte each at a step: some
    hundred of HH-RLHF's take a third to a half of what asking one by one does. What is not surely
    allowed, and any of fewer than ``_FEWEST_AT_ONCE`` texts, is left to ``other_language``.

    Args:
        texts: any texts.
        allowed: ISO 639 codes, all among ``known_languages()``.
    """
    if len(texts) < _FEWEST_AT_ONCE:
        return [False] * len(texts)
    model = _identifier()
    encoded = [_bytes_of(without_addresses(text)[:_READ_CHARACTERS]) for text in texts]
    ours = np.array([language in allowed for language in model.nb_classes])
    return [bool(share > _CLEARED_SHARE) for share in _shares_at_once(encoded, ours)]


def _bytes_of(text: str) -> bytes:
    """Text as the identifier reads it."""
    text = unicodedata.normalize("NFC", text.lower() if text.isupper() else text)
    return text.encode("utf-8", errors="surrogatepass")


@cache
def _automaton() -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.int32]]:
    """Of each state: where its row of next states begins; those rows; its feature, or -1."""
    model = _identifier()
    rows = np.asarray(model.tk_row, dtype=np.int64) << 8
    return rows, np.asarray(model.tk_nextmove), np.asarray(model.tk_output, dtype=np.int32)


def _features_of(encoded: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """[N] text and [N] feature of each n-gram that the automaton meets, texts in order."""
    rows, next_state, feature = _automaton()
    sizes = np.array([len(text) for text in encoded])
    order = np.argsort(-sizes, kind="stable")
    longest = int(sizes.max())
    # [T, B], longest text first, so that those which go on at a step are the first of its row.
    letters = np.zeros((longest, len(encoded)), dtype=np.uint8)
    for column, place in enumerate(order.tolist()):
        letters[: sizes[place], column] = np.frombuffer(encoded[place], dtype=np.uint8)
    num_going = np.searchsorted(-sizes[order], -np.arange(longest), side="left").tolist()
    found = np.full((len(encoded), longest), -1, dtype=np.int32)
    state = np.zeros(len(encoded), dtype=np.int64)
    for step, going in enumerate(num_going):
        state = next_state[rows[state[:going]] + letters[step, :going]]
        found[order[:going], step] = feature[state]
    is_met = found >= 0
    return np.repeat(np.arange(len(encoded)), is_met.sum(axis=1)), found[is_met]


def _shares_at_once(encoded: Sequence[bytes], ours: NDArray[np.bool_]) -> NDArray[np.float32]:
    """[B] share of the languages where ``ours`` [L] is True, for each text.

        share = softmax((sum_f log(1 + n_f) w_f + bias) / sqrt(bytes))

    as py3langid has it, with n_f the times that an n-gram stands in the text.
    """
    from scipy.sparse import csr_matrix

    model = _identifier()
    text, feature = _features_of(encoded)
    is_present = np.zeros(len(model.nb_ptc), dtype=bool)
    is_present[feature] = True
    number = (np.cumsum(is_present) - 1)[feature]
    weights = model.nb_ptc[is_present].astype(np.float32)
    size = max(len(weights), 1)
    shares = np.empty(len(encoded), dtype=np.float32)
    for start in range(0, len(encoded), _TEXTS_AT_ONCE):
        stop = min(start + _TEXTS_AT_ONCE, len(encoded))
        low, high = np.searchsorted(text, (start, stop))
        cells = (text[low:high] - start) * size + number[low:high]
        counts = np.bincount(cells, minlength=(stop - start) * size)
        filled = np.flatnonzero(counts > 0)
        ends = np.searchsorted(filled, np.arange(stop - start + 1) * size)
        logs = np.log1p(counts[filled].astype(np.float32))
        table = csr_matrix((logs, filled % size, ends), shape=(stop - start, len(weights)))
        scores = table @ weights + model.nb_pc
        # A text without any known n-gram says nothing of languages: all are alike.
        scores[np.diff(ends) == 0] = 0.0
        num_bytes = np.array([len(encoded[place]) or 1 for place in range(start, stop)])
        scores /= np.sqrt(num_bytes)[:, None]
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares[start:stop] = raised[:, ours].sum(axis=1) / raised.sum(axis=1)
    return shares


def switches_language(text: str, beside: Sequence[str]) -> bool:
    """Say whether a text surely is in a language that none of the others is in.

    Looser on length than ``other_language``: it is compared with texts that say what to expect,
    and meant for rates over many answers. What a text beside it may be in, however unlikely, is
    allowed, so short prompts and code allow much.

    Args:
        text: any text; one of fewer than four words gives no answer.
        beside: what it is compared with: the prompt, another model's answer.
    """
    if len(_WORD.findall(text)) < _MIN_COMPARED_WORDS:
        return False
    ranked = _shares(text)
    if ranked[0][1] < _SURE:
        return False
    allowed = {
        language for other in beside for language, share in _shares(other) if share >= _POSSIBLE
    }
    return sum(part for language, part in ranked if language in allowed) <= _MAX_SHARE_OF_OURS


@lru_cache(maxsize=16_384)
def _shares(text: str) -> tuple[tuple[str, float], ...]:
    read = without_addresses(text)[:_READ_CHARACTERS]
    return tuple((language, float(share)) for language, share in _identifier().rank(read))
