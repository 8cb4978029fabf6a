"""Which language a text is in, by rule: its script first, then the small words nobody avoids."""

import re
import unicodedata
from collections import Counter

from rlhf_core.dataprep.cleaning.addresses import without_addresses

_SCRIPTS = {
    "CYRILLIC": ("ru", "uk", "bg"),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("zh", "ja"),
    "HANGUL": ("ko",),
    "ARABIC": ("ar", "fa"),
    "HEBREW": ("he",),
    "GREEK": ("el",),
    "DEVANAGARI": ("hi",),
    "THAI": ("th",),
}
_WORDS = {
    "en": "the of and to is in that it for you with as are this be have not on was from can what "
    "do how my your he she they we would if or an about",
    "de": "der die und das ist nicht ein eine ich sie es zu mit den auf für von dem sich auch wie "
    "wir haben einen wird sind bei aber oder wenn",
    "fr": "le les et est une des que pas pour vous dans qui sur je il ne ce avec mais sont plus "
    "nous au cette du aux être vos",
    "es": "el los las una que de en por para con su más pero está muy yo qué del como lo es este "
    "también son cuando",
    "it": "il di che è un una per non sono con gli si del della più questo anche nel alla dei come "
    "ma io suo quando",
    "pt": "os um uma que não de em para com é da mais como mas você eu isso está muito dos seu "
    "pelo também são quando",
    "nl": "de het een en van dat niet ik je op voor zijn er maar ook aan hebben naar wat met deze "
    "wordt bij dan kunnen",
}
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, words in _WORDS.items() if word in words.split())
    for words in _WORDS.values()
    for word in words.split()
}
_TOKEN = re.compile(r"[^\W\d_]+")
_MIN_WORDS = 10
_MIN_SHARE = 0.15
"""Running text has more small words of its language than this."""
_MIN_DISTINCT = 4
_MIN_WORDS_OF_STRANGERS = 20
_MAX_SHARE_OF_OURS = 0.1
_MIN_ACCENTED_SHARE = 0.1
"""A language without a list of its own is told by what English, code and names have not."""
UNKNOWN = "a language without a rule"

KNOWN = frozenset(_WORDS) | {code for codes in _SCRIPTS.values() for code in codes}


def other_language(text: str, allowed: frozenset[str]) -> str | None:
    """Return the language of ``text`` where it surely is none of ``allowed``; None in doubt.

    Short texts, code and names give no answer, so they stay. Of a language that is not in
    ``KNOWN`` it is enough that twenty words have letters with accents, or of other scripts, and
    almost none of the small words of ``allowed``; the answer is then ``UNKNOWN``.

    Args:
        text: any text.
        allowed: ISO 639-1 codes, all in ``KNOWN``.
    """
    text = without_addresses(text)
    script = _script(text)
    if script is not None:
        languages = _SCRIPTS[script]
        return None if allowed & set(languages) else languages[0]
    written = _TOKEN.findall(text)
    words = [word.lower() for word in written]
    if len(words) < _MIN_WORDS:
        return None
    hits: dict[str, list[str]] = {language: [] for language in _WORDS}
    for word in [word for word in words if word in _LANGUAGES_OF]:
        for language in _LANGUAGES_OF[word]:
            hits[language].append(word)
    best = max(hits, key=lambda language: len(hits[language]))
    ours = max((len(hits[language]) for language in allowed if language in hits), default=0)
    sure = (
        len(hits[best]) >= _MIN_SHARE * len(words)
        and len(set(hits[best])) >= _MIN_DISTINCT
        and len(hits[best]) >= 2 * ours
    )
    if sure:
        return None if best in allowed else best
    return UNKNOWN if _is_strange(written, ours) else None


def _is_strange(words: list[str], ours: int) -> bool:
    """Tell running text of a language without a rule; names, which begin large, are no sign."""
    if len(words) < _MIN_WORDS_OF_STRANGERS or ours > _MAX_SHARE_OF_OURS * len(words):
        return False
    accented = sum(
        len(word) > 1 and not word.isascii() and word[0] == word[0].lower() for word in words
    )
    return accented >= _MIN_ACCENTED_SHARE * len(words)


def _script(text: str) -> str | None:
    """Return the script of most letters, where it is not Latin."""
    if text.isascii():
        return None
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            counts[unicodedata.name(character, "?").split()[0]] += count
    if counts.total() < _MIN_WORDS:
        return None
    name, count = counts.most_common(1)[0]
    return name if name in _SCRIPTS and count > counts.total() / 2 else None
