"""Which language a text is in, asked of py3langid: naive Bayes over byte n-grams, 140 languages.

Lui & Baldwin (2012), langid.py: An Off-the-shelf Language Identification Tool.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from rlhf_core.dataprep.cleaning.addresses import without_addresses

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
_MIN_COMPARED_WORDS, _SURE, _POSSIBLE = 4, 0.9, 0.02
"""Of texts that are compared with others. Measured on answers of the demo and on HH-RLHF."""


@cache
def _identifier() -> LanguageIdentifier:
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
