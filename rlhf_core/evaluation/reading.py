"""Texts as a reader sees them: formatting put aside, and words where no spaces stand."""

import re
import unicodedata
from collections import Counter

from rlhf_core.dataprep.keys import UNSPACED

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\uff07", "'"))
_FORMATTING = re.compile(r"[*~`\u00ad\u200b-\u200d\u2060\ufeff]|(?<![^\W_])_+|_+(?![^\W_])")
"""Emphasis, code marks and characters of no width; an underscore inside a word belongs to it."""

_SYMBOLS = re.compile(r"(?:[^\w\s]\s*|_\s*){4}")
"""Four signs in a row are more than the punctuation of a sentence, and count as a word."""
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "BOPOMOFO")
"""How names of characters begin that stand side by side in one language."""


def plain(text: str) -> str:
    """The text without formatting, on one line: what phrases are looked for in."""
    straight = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
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
