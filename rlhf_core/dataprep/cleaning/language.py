"""Which language a text is in, asked of py3langid: naive Bayes over byte n-grams, 140 languages.

Lui & Baldwin (2012), langid.py: An Off-the-shelf Language Identification Tool.
"""

import re
from functools import cache

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
