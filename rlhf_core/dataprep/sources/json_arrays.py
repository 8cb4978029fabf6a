"""JSON arrays read value by value: an export is one value, and as a whole would fill memory.

The array may be the file or stand under a key of it, as in ``{"version": 1, "data": [...]}``.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_core.errors import DataError
from rlhf_core.storage.records import read_blocks, read_raw_lines, shorten

_BEGIN = 100
_WRAPPERS = frozenset(
    ("data", "rows", "examples", "instances", "items", "records", "comparisons", "samples", "train")
)
"""How the list of an object is called that is a file and no row, where both are one line."""
_SPACE = re.compile(r"[ \t\n\r]*")
_NEAR_END = 16
"""What the end of a block broke off is complained about at most as far from it; texts aside."""
_BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]]', re.DOTALL)
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds where a value ends; numbers stay as they are written, for Python limits their length."""


def read_values(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(number from 1, text)`` of every value of a JSON array, the text yet to be parsed.

    Raises:
        DataError: the file is missing, damaged, not UTF-8, or has no array or several; names a
            value before the place, the last one where the array itself is broken.
    """
    text = _Text(path)
    number = 0
    try:
        key = _enter(text, path)
        while number or text.next_sign() != "]":
            value = text.take_value()
            number += 1
            yield number, value
            if text.next_sign() != ",":
                break
            text.skip()
            if text.next_sign() == "]":  # A comma behind the last value.
                break
        text.require("]")
        if key and (other := text.leave_object()):
            raise DataError(
                f"{path}: lists of objects under {key!r} and under {other!r}; expected one, write"
                " each to a file of its own"
            )
        text.require("")
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


def _enter(text: "_Text", path: Path) -> str:
    """Go to the first value of the file's list, and return the key it has, if it has one."""
    begin = text.begin()
    is_object = text.next_sign() == "{"
    key = text.enter_object() if is_object else ""
    if is_object and not key:
        advice = "; if each line is an object, name the file .jsonl"
        raise DataError(f"{path}: expected a list of objects, found {begin}{advice}")
    if not is_object and text.next_sign() != "[":
        raise DataError(f"{path}: expected a list of objects, found {begin}")
    if not is_object:
        text.skip()
    return key


def begins_with_object(path: Path) -> bool:
    """Tell whether the first line of a file is an object of its own, as in JSON lines."""
    if not next(read_blocks(path), b"").lstrip().startswith(b"{"):
        return False
    first = next((line for line in read_raw_lines(path) if line.strip()), b"")
    try:
        value = json.loads(first, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not _holds_rows(value)


def _holds_rows(value: dict[str, Any]) -> bool:
    """Tell a file that is one object on one line from a row: nothing but rows and words on them."""
    lists = [name for name, part in value.items() if isinstance(part, list)]
    rows = value[lists[0]] if len(lists) == 1 and lists[0] in _WRAPPERS else []
    return bool(rows) and all(isinstance(row, dict) for row in rows)


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
        self.next_sign()
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
        """Return where an object that is no JSON ends, by its brackets; 0 where that is not known.

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

    def enter_object(self) -> str:
        """Go to the first object of the first list of objects, and return the list's key.

        Empty where no key has such a list; then the object has been read.
        """
        sign = "{"
        while sign in ("{", ","):
            self.skip()
            if self.next_sign() == "}":
                break
            key: str = json.loads(self.take_value())
            self.require(":")
            if self.next_sign() != "[":
                self.take_value()
            elif self._enter_list():
                return key
            sign = self.next_sign()
        return ""

    def _enter_list(self) -> bool:
        """Go to the first value of a list if it is an object; else behind the list."""
        self.skip()
        if self.next_sign() == "{":
            return True
        while self.next_sign() != "]":
            self.take_value()
            if self.next_sign() == ",":
                self.skip()
        self.skip()
        return False

    def leave_object(self) -> str:
        """Read what follows a list in its object; return the key of a second list of objects."""
        if self.next_sign() == "," and (key := self.enter_object()):
            return key
        self.require("}")
        return ""

    def require(self, wanted: str) -> None:
        """Go past a sign, or the end where it is empty, and refuse anything else."""
        if self.next_sign() != wanted:
            what = {"]": "the end of the list", "": "nothing behind the list"}.get(wanted, wanted)
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
