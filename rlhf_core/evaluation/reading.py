"""Texts as a reader sees them: formatting put aside, and words where no spaces stand."""

import re
import unicodedata
from collections import Counter
from functools import cache

import regex
from confusable_homoglyphs.confusables import confusables_data

from rlhf_core.dataprep.keys import UNSPACED

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\uff07", "'"))
_FORMATTING = re.compile(r"[*~`\u00ad\u200b-\u200d\u2060\ufeff]|(?<![^\W_])_+|_+(?![^\W_])")
"""Emphasis, code marks and characters of no width; an underscore inside a word belongs to it."""

_WRITTEN = re.compile(r"[^\W\d_]+")
_UNSEEN = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}]+")
"""Characters that are drawn as nothing: of no width, variation selectors, fillers, directions."""
_HIDDEN = regex.compile(rf"(?<=[A-Za-z]){_UNSEEN.pattern}(?=[A-Za-z])")
_DECORATED = re.compile(r"(?<=[A-Za-z])[\u0300-\u036f]+")
"""Marks on a letter that makes no letter of its own with them: underlined, struck through."""
_STYLED = re.compile(
    r"(?:SMALL CAPITAL|NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER) ([A-Z])$"
)
"""How the names of letters end that are a Latin letter in another dress, and have no other form."""
_PHONETIC = range(0x0250, 0x02B0)
"""Letters of the phonetic alphabet: some are letters of languages, some only look like others."""
_MIN_DRESSED = 4
"""Letters in another dress that are more than a sign: a wide NHK, a circled A, 5 \u2113."""
_SYMBOLS = re.compile(r"(?:[^\w\s]\s*|_\s*){4}")
"""Four signs in a row are more than the punctuation of a sentence, and count as a word."""
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "BOPOMOFO")
"""How names of characters begin that stand side by side in one language."""


def folded(text: str) -> str:
    """The text as the eye reads it: compatible forms one, nothing invisible, look-alikes Latin.

    Letters of another script are folded in words that mix them with Latin ones, or in which all of
    them look like Latin letters; a word of a script of its own stays as it is. For monitors alone:
    data are never changed.
    """
    if text.isascii():
        return text
    visible = unicodedata.normalize("NFKC", _UNSEEN.sub("", text.translate(_APOSTROPHES)))
    visible = "".join(map(_undressed, _DECORATED.sub("", visible)))
    return _WRITTEN.sub(lambda word: _folded_word(word.group()), visible)


def is_disguised(text: str) -> bool:
    """Say whether a text hides what it says.

    That is with unseen characters in words, look-alike letters among Latin ones, or Latin letters
    in another dress (wide, mathematical, circled, struck through).
    """
    if text.isascii():
        return False
    plain_forms = unicodedata.normalize("NFKC", text)
    dressed = sum(not one.isascii() and _is_dressed(one) for one in text)
    return (
        bool(_HIDDEN.search(text) or _DECORATED.search(plain_forms))
        or dressed >= _MIN_DRESSED
        or any(
            _folded_word(word) != word and any(map(_is_latin, word))
            for word in _WRITTEN.findall(plain_forms)
        )
    )


def _is_dressed(letter: str) -> bool:
    form = unicodedata.normalize("NFKC", _undressed(letter))
    return len(form) == 1 and form.isascii() and form.isalpha()


@cache
def _undressed(letter: str) -> str:
    """Return a letter in its usual form where its name alone says what that is."""
    dress = None if letter.isascii() else _STYLED.search(unicodedata.name(letter, ""))
    return dress.group(1).lower() if dress else letter


def _folded_word(word: str) -> str:
    if word.isascii():
        return word
    likes = [
        letter if _is_latin(letter) and ord(letter) not in _PHONETIC else _latin_like(letter)
        for letter in word
    ]
    mixed = any(map(_is_latin, word))
    if not mixed and None in likes:
        return word
    return "".join(like or letter for like, letter in zip(likes, word, strict=True))


def _is_latin(letter: str) -> bool:
    return letter.isascii() or _script(letter) == "LATIN"


@cache
def _latin_like(letter: str) -> str | None:
    """The Latin letter that another one looks like (Unicode's confusables); None without one."""
    likes = [like["c"] for like in confusables_data.get(letter, ())]
    return next(
        (like for like in likes if len(like) == 1 and like.isascii() and like.isalpha()), None
    )


def plain(text: str) -> str:
    """The text without formatting, on one line: what phrases are looked for in."""
    straight = folded(text)
    return " ".join(_FORMATTING.sub("", straight).split())


def units(text: str) -> str:
    """The text with spaces around all that counts as a word, for what counts words.

    Characters of scripts without spaces stand alone, and signs in a row are spelled out: or else
    300 of them would be one word, or none.
    """
    spelled = _SYMBOLS.sub(lambda signs: f" {_spelled(signs.group())} ", text)
    return UNSPACED.sub(r" \g<0> ", spelled)


def _spelled(signs: str) -> str:
    return "".join(f"u{ord(sign):x}" for sign in signs if not sign.isspace())


def scripts(text: str) -> set[str]:
    """Scripts a text has words of; a lone letter, as in 5 \u03a9, makes no word."""
    found: set[str] = set()
    for word in set(unicodedata.normalize("NFKC", text).split()):
        letters = Counter(_script(letter) for letter in word if letter.isalpha())
        found |= {script for script, count in letters.items() if count > 1}
    return found


def _script(letter: str) -> str:
    if letter.isascii():
        return "LATIN"
    name = unicodedata.name(letter, "UNNAMED")
    return "EAST ASIAN" if name.startswith(_EAST_ASIAN) else name.split()[0]
