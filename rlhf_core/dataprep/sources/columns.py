"""Columns under our names: a mapping renames or looks inside, and drops nothing.

prompt: question                         the column of that name
prompt: input.messages                   a field of an object
chosen: preferred_output.0.content       a place of a list
responses: completions.*.response        one value of every entry of a list
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf_core.dataprep.sources.rows import Columns, RawRow

_MISSING = object()
_PARENTHESES = re.compile(r"\}\s*\n\s*\{")
"""Between two entries of a list of objects as NumPy writes it, without a comma."""


def renamed(row: RawRow, columns: Mapping[str, str]) -> RawRow:
    """Return a row under our names; what ``columns`` names and the row lacks stays missing.

    A column of ours that is mapped to another keeps what it held under a name that says so.
    """
    if not columns:
        return row
    original = row.value
    found = {ours: find(original, theirs) for ours, theirs in columns.items()}
    read = frozenset(theirs.split(".")[0] for theirs in columns.values() if theirs not in original)
    left = {
        f"{name} (the file's own)" if name in columns else name: value
        for name, value in original.items()
        if name not in columns.values() and not (name in columns and name in read)
    }
    ours = {name: value for name, value in found.items() if value is not _MISSING}
    names = {name: theirs for name, theirs in columns.items() if name != theirs}
    return replace(row, value=Columns({**left, **ours}, read), names=names, original=original)


def find(value: Any, path: str) -> Any:
    """Return what a path names in a row, or a mark that nothing is there."""
    value = structured(value)
    if isinstance(value, dict) and path in value:
        return value[path]
    first, _, rest = path.partition(".")
    if first == "*" and isinstance(value, list):
        found = [find(entry, rest) if rest else entry for entry in value]
        return _MISSING if any(entry is _MISSING for entry in found) else found
    inner = _step(value, first)
    if inner is _MISSING or not rest:
        return inner
    return find(inner, rest)


def tags_of(row: RawRow) -> dict[str, str]:
    """Return a row's labels: its column ``tags``, where that is an object of plain values.

    Lists of words are published under the same name; they label nothing by a key and are ignored.
    """
    found = structured(dict.get(row.value, "tags"))
    if not isinstance(found, dict):
        return {}
    row.value.read.add("tags")
    labels = {
        str(key): str(value).strip()
        for key, value in found.items()
        if isinstance(value, str | int | float)
    }
    return {key: value for key, value in labels.items() if key and value}


def is_there(found: object) -> bool:
    """Tell whether ``find`` found something."""
    return found is not _MISSING


def _step(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return value.get(name, _MISSING)
    if isinstance(value, list) and re.fullmatch(r"-?\d{1,9}", name):
        place = int(name)
        return value[place] if -len(value) <= place < len(value) else _MISSING
    return _MISSING


def structured(value: Any) -> Any:
    """Return the list or object that a text writes, in JSON or as Python does; else the value."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for reading in (json.loads, ast.literal_eval, _as_numpy):
        try:
            found = reading(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(found, list | dict):
            return found
    return value


def _as_numpy(text: str) -> Any:
    return ast.literal_eval(_PARENTHESES.sub("}, {", text))
