"""Texts as a reader sees them: formatting put aside, and words where no spaces stand."""

import re
import unicodedata

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\uff07", "'"))
_FORMATTING = re.compile(r"[*~`\u00ad\u200b-\u200d\u2060\ufeff]|(?<![^\W_])_+|_+(?![^\W_])")
"""Emphasis, code marks and characters of no width; an underscore inside a word belongs to it."""


def plain(text: str) -> str:
    """The text without formatting, on one line: what phrases are looked for in."""
    straight = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    return " ".join(_FORMATTING.sub("", straight).split())
