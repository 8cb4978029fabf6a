"""Texts as a reader sees them: formatting put aside, and words where no spaces stand."""

import re
import unicodedata
from collections import Counter
from functools import cache

from confusable_homoglyphs.confusables import confusables_data

from rlhf_core.dataprep.keys import UNSPACED

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\uff07", "'"))
_FORMATTING = re.compile(r"[*~`\u00ad\u200b-\u200d\u2060\ufeff]|(?<![^\W_])_+|_+(?![^\W_])")
"""Emphasis, code marks and characters of no width; an underscore inside a word belongs to it."""

_WRITTEN = re.compile(r"[^\W\d_]+")
_HIDDEN = re.compile(
    r"(?<=[A-Za-z])[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+(?=[A-Za-z])"
)
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
    visible = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    if visible.isascii():
        return visible
    visible = "".join(letter for letter in visible if unicodedata.category(letter) != "Cf")
    return _WRITTEN.sub(lambda word: _folded_word(word.group()), visible)


def is_disguised(text: str) -> bool:
    """Say whether a text hides what it says: unseen characters in words, look-alike letters."""
    return bool(_HIDDEN.search(text)) or any(
        _folded_word(word) != word and any(map(_is_latin, word))
        for word in _WRITTEN.findall(unicodedata.normalize("NFKC", text))
    )


def _folded_word(word: str) -> str:
    if word.isascii():
        return word
    likes = [letter if _is_latin(letter) else _latin_like(letter) for letter in word]
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
