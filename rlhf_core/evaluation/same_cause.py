"""Reasons with one cause and the same numbers, said to people in one line."""

import re
from collections import defaultdict
from collections.abc import Iterable

_GATE = r"(?P<gate>\S+(?: \[.+\])?)"
_TOLD_ONCE = (
    (
        rf"(?P<verdict>(?:HOLD: )?)(?:\S+ not ruled out\. )?{_GATE} = \S+ \[[^]]+\] \([^)]+\): "
        r"(?P<count>\d+) samples are too few, the gate asks for (?P<asked>\d+)\.",
        "{verdict}{num} gates want {asked} samples and there are {count}: {gates}.",
    ),
    (
        rf"{_GATE}: about (?P<needed>\d+) samples in place of (?P<count>\d+) would pass it, if .+",
        "about {needed} samples in place of {count} would pass {num} gates, if their values stay: "
        "{gates}",
    ),
    (
        rf"{_GATE}: about (?P<needed>\d+) samples in place of (?P<count>\d+) would reject .+",
        "about {needed} samples in place of {count} would reject the model by {num} gates, if "
        "their values stay: {gates}",
    ),
    (
        rf"{_GATE}: at least (?P<needed>\d+) samples that can be measured",
        "{num} gates want at least {needed} samples that can be measured: {gates}",
    ),
)
"""What is said of one gate, and how it is said of several."""


def gather(lines: Iterable[str]) -> list[str]:
    """Return what was said of gates, those held by one cause with the same numbers in one line.

    It stands where the first of them stood; the gate table has each gate's value.
    """
    gathered: defaultdict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for line in lines:
        key, found = _cause(line)
        gathered[key].append((line, found))
    return [_said_of(key[0], alike) for key, alike in gathered.items()]


def _cause(line: str) -> tuple[tuple[str, ...], dict[str, str]]:
    for pattern, several in _TOLD_ONCE:
        if match := re.fullmatch(pattern, line):
            found = match.groupdict()
            return (several, *(text for name, text in found.items() if name != "gate")), found
    return (line,), {}


def _said_of(several: str, alike: list[tuple[str, dict[str, str]]]) -> str:
    line, found = alike[0]
    gates = list(dict.fromkeys(one["gate"] for _, one in alike if one))
    if len(gates) < 2:
        return line
    return several.format(**found, num=len(gates), gates=", ".join(gates))
