"""YAML as settings are written: every key once, nothing that versions of YAML read differently.

YAML 1.1 reads ``010`` as 8, ``1:30`` as 90 and ``no`` as false; YAML 1.2 reads 10, a text and a
text (yaml.org/spec/1.2.2, section 10.3; yaml.org/type). Tools follow one or the other, so a value
on which the two disagree is refused. Dates are texts here, for no setting is one.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import yaml

from rlhf_core.errors import ConfigError

KeyPath = tuple[str | int, ...]
Places = dict[KeyPath, str]
"""Where each value is written: ``file.yaml, line 3``."""

_MAX_DEPTH = 40
_MAX_VALUES = 100_000
_MAX_DIGITS = 40
_MAX_SHOWN = 60
_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_MERGE = "<<"
_CONSTANTS: dict[str, object] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True)
_CONSTANTS |= dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_TWO_READINGS = re.compile(
    r"[yY]es|YES|[nN]o|NO|[oO]n|ON|[oO]ff|OFF"
    r"|[-+]?0[0-9_]+(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"  # octal, or decimal
    r"|[-+]?0[ob][0-9_]+|[-+]0x[0-9a-fA-F_]+|0x[0-9a-fA-F]*_[0-9a-fA-F_]*"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"  # to the base of 60
    r"|[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]*\.[0-9]*_[0-9_]*(?:[eE][-+]?[0-9]+)?"
)


def split_settings(written: Iterable[str]) -> dict[str, str]:
    """Return what ``--set KEY=VALUE`` says, each key with its value as it is written.

    Args:
        written: ``KEY=VALUE``; a key may lie below another one, ``a.b``.

    Raises:
        ConfigError: one is not that, or says a second time what another one did.
    """
    given: dict[str, str] = {}
    for one in written:
        key, equals, value = one.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {one}: expected KEY=VALUE")
        for other in given:
            if other == key or other.startswith(f"{key}."):
                raise ConfigError(
                    f"--set {one}: {other} is set to {given[other]} already; keep one"
                )
        given[key] = value
    return given


def read_written(text: str, where: str, *, has_lines: bool = True) -> tuple[Any, Places]:
    """Return the value that ``text`` writes down, and where each part of it stands.

    Args:
        text: one YAML document.
        where: the file or option it comes from, for messages.
        has_lines: whether a line says more than ``where``.

    Raises:
        ConfigError: it is not YAML, a key stands twice, or a value can be read in two ways; names
            place and key.
    """
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        reading = _Reading(where, has_lines)
        return (None if root is None else reading.value(root, ())), reading.places
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {yaml_problem(error)}") from None
    except RecursionError as error:
        raise ConfigError(f"{where}: nested deeper than {_MAX_DEPTH} levels") from error


def yaml_problem(error: yaml.YAMLError) -> str:
    """Say what is wrong and where, in one line, without the text itself: it may hold a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark, began = error.problem_mark, error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    since = f", begun in line {began.line + 1}" if began and began.line != mark.line else ""
    context = f" ({error.context}{since})" if error.context else ""
    return f"{where}: {error.problem}{context}"


class _Reading:
    """Values of the nodes of one document, with their places."""

    def __init__(self, where: str, has_lines: bool) -> None:
        self.where, self.has_lines = where, has_lines
        self.places: Places = {}
        self.num_values = 0

    def place(self, node: yaml.Node) -> str:
        """Say where a node begins."""
        return f"{self.where}, line {_line(node)}" if self.has_lines else self.where

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return what a node means. An alias is read anew wherever it stands."""
        self.num_values += 1
        self.places.setdefault(path, self.place(node))
        if len(path) > _MAX_DEPTH:
            raise self.refusal(node, path[:2], f"nested deeper than {_MAX_DEPTH} levels")
        if self.num_values > _MAX_VALUES:
            raise self.refusal(node, path, f"more than {_MAX_VALUES:,} values, aliases counted")
        if node.tag not in _TAGS:
            raise self.refusal(node, path, f"tags are not read, found {shown(node.tag)}")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """Return a mapping whose keys are texts as written, each of them once."""
        own: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            key = self.key(key_node, path)
            if key in first:
                lines = f" (first in line {_line(first[key])})" if self.has_lines else ""
                words = f"the same key again{lines}; keep one of the two"
                raise self.refusal(key_node, (*path, key), words)
            first[key] = key_node
            if key == _MERGE and key_node.style is None:
                several = isinstance(value_node, yaml.SequenceNode)
                merged += value_node.value if several else [value_node]
                continue
            self.places[*path, key] = self.place(key_node)
            own[key] = self.value(value_node, (*path, key))
        for source in merged:
            value = self.value(source, path)
            if not isinstance(value, dict):
                raise self.refusal(source, path, "<< merges mappings, and this is none")
            own = {**value, **own}
        return own

    def key(self, node: yaml.Node, path: KeyPath) -> str:
        """Return a key as it is written."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.refusal(node, path, "a key is a word, found a list or mapping")
        return self.text(node, path)

    def scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return what a scalar means in YAML 1.1 and 1.2 alike."""
        text = self.text(node, path)
        if getattr(node, "style", None) is not None:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _TWO_READINGS.fullmatch(text):
            raise self.refusal(
                node, path, f"{shown(text)} means one thing to YAML 1.1 and another to YAML 1.2; "
                "write true, false or a plain decimal number, or put it in quotes if it is a text",
            )  # fmt: skip
        if _INTEGER.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                raise self.refusal(node, path, f"a number of {len(text):,} digits")
            return int(text, 0)
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def text(self, node: yaml.Node, path: KeyPath) -> str:
        """Return the characters of a scalar, of which none is invisible."""
        text = str(node.value)
        for character in text:
            if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
                raise self.refusal(
                    node, path, f"holds the control character {character!a}; leave it out"
                )
        return text

    def refusal(self, node: yaml.Node, path: KeyPath, words: str) -> ConfigError:
        """Return the error that names place, key and what is wrong."""
        key = ".".join(shown(str(part)) for part in path)
        return ConfigError(f"{self.place(node)}: {f'{key}: ' if key else ''}{words}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def shown(text: str) -> str:
    """Return a text for a message: short, on one line, its control characters written out."""
    short = (
        text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text):,} characters)"
    )
    return short if short.isprintable() else ascii(short)
