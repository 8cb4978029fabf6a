"""Personal data by rule: what looks like an e-mail address, a telephone number or a secret."""

import math
import re
from collections import Counter
from collections.abc import Iterable

_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[a-z0-9-]{1,63}\.)+[a-z]{2,24}\b", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d[\d .-]{4,16}\d(?![\w/-])"
)
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"
)
_KEY_LIKE = re.compile(r"(?<![\w/=+-])[A-Za-z0-9_+/=-]{32,200}(?![\w/=+-])")
_ADDRESS = re.compile(r"\S*(?:://|www\.)\S*")
_MIN_ENTROPY = 4.0
"""Bits per character; prose and paths stay below, random keys above."""


def find_personal_data(text: str, kinds: Iterable[str]) -> str | None:
    """Return the first kind found in ``text``: ``email``, ``phone`` or ``secret``.

    Rules, not a model: names and addresses pass, and a serial number may be taken for a telephone
    number. The quarantine file shows what was caught.
    """
    for kind in kinds:
        if _FINDERS[kind](text):
            return kind
    return None


def _has_email(text: str) -> bool:
    return "@" in text and _EMAIL.search(text) is not None


def _has_phone(text: str) -> bool:
    """Nine digits or more, or a number with a country or area code; not a date or a plain count."""
    for match in _PHONE.finditer(text):
        found = match.group()
        digits = sum(character.isdigit() for character in found)
        grouped = any(mark in found.strip("+") for mark in " .-()")
        if 7 <= digits <= 15 and (found.startswith(("+", "(")) or (grouped and digits >= 9)):
            return True
    return False


def _has_secret(text: str) -> bool:
    if _SECRET.search(text) is not None:
        return True
    words = _ADDRESS.sub(" ", text)
    return any(_looks_random(match.group()) for match in _KEY_LIKE.finditer(words))


def _looks_random(word: str) -> bool:
    if not (any(c.isdigit() for c in word) and any(c.isalpha() for c in word)):
        return False
    counts = Counter(word).values()
    entropy = -sum(n / len(word) * math.log2(n / len(word)) for n in counts)
    is_hexadecimal = all(c in "0123456789abcdefABCDEF" for c in word)
    return entropy >= (3.0 if is_hexadecimal else _MIN_ENTROPY)


_FINDERS = {"email": _has_email, "phone": _has_phone, "secret": _has_secret}
