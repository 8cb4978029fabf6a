"""Web addresses, whose letters and digits say nothing about the text around them."""

import re

_ADDRESS = re.compile(r"(?<!\S)\S*?(?:://|www\.)\S*")
"""Looked for at the start of a word alone, or a long word would be searched from every letter."""


def without_addresses(text: str) -> str:
    """Return the text with a space in place of each address."""
    if "://" in text or "www." in text:
        return _ADDRESS.sub(" ", text)
    return text
