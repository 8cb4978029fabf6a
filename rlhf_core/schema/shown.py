r"""Text from data and models, as people may see it: every sign is shown, none is obeyed.

A terminal obeys escape sequences, a page the controls that reverse what is read, a spreadsheet the
formula a cell begins with, Markdown its signs. Rows are other people's writing, so what they hold
is shown as ``\x1b`` or ``\u202e`` wherever it leaves the product for somebody's eyes.
"""

import re
import unicodedata
from typing import TypeVar

Value = TypeVar("Value")

_JOINERS = "\u200c\u200d"
"""Control letters and emoji of ordinary writing; they change no order and hide nothing."""
_OBEYED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MARKDOWN = re.compile(r"[\\`*|]|\](?=\s*[(\[:])|<(?=[a-z/!?])|^[#>+-]", re.IGNORECASE)
"""What begins markup: code, emphasis, a cell, a link, a tag, a heading or a list."""
_LINK = re.compile(r"https?://[^\s()<>\"'`\\|\[\]]+", re.ASCII)


def shown(text: str, *, keep: str = "\n\t") -> str:
    """Return the text with its control characters written out.

    Args:
        text: from anywhere.
        keep: those that stay as they are; a line of a log keeps none.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign in keep else _written_out(sign) for sign in text)


def shown_cell(value: Value) -> Value | str:
    """Return what stands in a cell of a CSV file: text a spreadsheet shows and does not compute.

    A text that would begin a formula gets an apostrophe before it; a number is left as it is.
    """
    if not isinstance(value, str):
        return value
    if value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        value = f"'{value}"  # type: ignore[assignment]
    return shown(str(value), keep="\n")


def shown_markdown(text: object) -> str:
    """Return one line of Markdown that reads as the text does: no markup, no link, no cell."""
    return _MARKDOWN.sub(r"\\\g<0>", shown(" ".join(str(text).split()), keep=""))


def shown_code(text: object) -> str:
    """Return the text as code within a line of Markdown, a table's cell included."""
    plain = shown(" ".join(str(text).split()), keep="").replace("`", "'").replace("|", "\u2502")
    return f"`{plain}`"


def shown_link(words: str, address: str) -> str:
    """Return a link of Markdown; an address that a browser should not follow is shown as text."""
    words = shown_markdown(words)
    return (
        f"[{words}]({address})" if _LINK.fullmatch(address) else f"{words}: {shown_code(address)}"
    )


def _written_out(sign: str) -> str:
    if sign in _JOINERS or unicodedata.category(sign) not in _OBEYED:
        return sign
    code = ord(sign)
    width, letter = (2, "x") if code < 0x100 else (4, "u") if code < 0x10000 else (8, "U")
    return f"\\{letter}{code:0{width}x}"
