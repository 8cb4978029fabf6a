"""Web addresses, whose letters and digits say nothing about the text around them."""

import re

_ADDRESS = re.compile(r"\S*(?:://|www\.)\S*")


def without_addresses(text: str) -> str:
    """Return the text with a space in place of each address."""
    if "://" in text or "www." in text:
        return _ADDRESS.sub(" ", text)
    return text
