"""JSON arrays read value by value: an export is one value, and as a whole would fill memory."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from rlhf_core.dataprep.files import read_blocks, read_raw_lines, shorten
from rlhf_core.errors import DataError

_BEGIN = 100
_SPACE = re.compile(r"[ \t\n\r]*")
_NEAR_END = 16
"""What the end of a block broke off is complained about at most as far from it; texts aside."""
_BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]]', re.DOTALL)
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds where a value ends; numbers stay as they are written, for Python limits their length."""


def read_values(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(number from 1, text)`` of every value of a JSON array, the text yet to be parsed.

    Raises:
        DataError: the file is missing, damaged, not UTF-8, or not one array; names a value before
            the place, the last one where the array itself is broken.
    """
    text = _Text(path)
    number = 0
    try:
        sign = text.next_sign()
        if sign != "[":
            advice = "; if each line is an object, name the file .jsonl" if sign == "{" else ""
            raise DataError(f"{path}: expected a list of objects, found {text.begin()}{advice}")
        text.skip()
        while number or text.next_sign() != "]":
            value = text.take_value()
            number += 1
            yield number, value
            if text.next_sign() != ",":
                break
            text.skip()
            if text.next_sign() == "]":  # A comma behind the last value.
                break
        text.require_end()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, after item {number}: not UTF-8 ({error.reason}); expected UTF-8 text; convert"
            " the file first"
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(
            f"{path}, after item {number}: broken JSON ({reason}); expected a list of objects"
        ) from error


def begins_with_object(path: Path) -> bool:
    """Tell whether the first line of a file is an object of its own, as in JSON lines."""
    if not next(read_blocks(path), b"").lstrip().startswith(b"{"):
        return False
    first = next((line for line in read_raw_lines(path) if line.strip()), b"")
    try:
        return isinstance(json.loads(first, parse_int=str, parse_float=str), dict)
    except (ValueError, RecursionError):
        return False


class _Text:
    """The text of a file, as much of it as is at hand."""

    def __init__(self, path: Path) -> None:
        self._blocks = codecs.iterdecode(read_blocks(path), "utf-8")
        self._text = ""
        self._place = 0

    def next_sign(self) -> str:
        """Return what comes after white space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._place)
            self._place = found.end() if found else self._place
            if self._place < len(self._text) or not self._read_on():
                return self._text[self._place : self._place + 1]

    def begin(self) -> str:
        """Return how the rest begins, as a message shows it."""
        return shorten(self._text[self._place :][:_BEGIN])

    def skip(self) -> None:
        """Go past one sign."""
        self._place += 1

    def take_value(self) -> str:
        """Return the text of the value that comes next, and go past it."""
        self.next_sign()
        while True:
            try:
                _, end = _SCANNER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                near_end = len(self._text) - error.pos <= _NEAR_END
                if (near_end or "Unterminated" in error.msg) and self._read_on():
                    continue
                end = self._end_of_broken()
                if not end:
                    raise
            start, self._place = self._place, end
            return self._text[start:end]

    def _end_of_broken(self) -> int:
        """Return where an object that is no JSON ends, by its brackets; 0 where that is not told.

        The text of such a value is yielded as it is, and whoever parses it finds it broken: one
        row of an array, not the array.
        """
        if self._text[self._place : self._place + 1] not in ("{", "["):
            return 0
        while True:
            depth = 0
            for found in _BRACKETS.finditer(self._text, self._place):
                sign = found[0]
                depth += (sign in "{[") - (sign in "}]")
                if depth == 0:
                    return found.end() if sign in "}]" else 0
            if not self._read_on():
                return 0

    def require_end(self) -> None:
        """Refuse anything but one closing bracket."""
        for wanted in ("]", ""):
            if self.next_sign() != wanted:
                what = "the end of the list" if wanted else "nothing behind the list"
                raise json.JSONDecodeError(f"Expecting {what}", self._text, self._place)
            self.skip()

    def _read_on(self) -> bool:
        """Have at least twice as much at hand, so that a long value is not scanned too often."""
        rest = self._text[self._place :]
        pieces, size = [rest], 0
        for block in self._blocks:
            pieces.append(block)
            size += len(block)
            if size >= len(rest):
                break
        self._text, self._place = "".join(pieces), 0
        return size > 0
