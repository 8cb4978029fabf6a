"""What a sentence claims about the town, and whether it is true."""

import re
from dataclasses import dataclass
from typing import Literal

from rlhf_core.demo.facts import (
    FIRST_NAMES,
    LAST_NAMES,
    PLACES,
    STREET_HEADS,
    STREET_TAILS,
    WEEKDAYS,
    Attribute,
    town,
)
from rlhf_core.demo.reading import Intent

Topic = Attribute | Literal["total", "hours"]


def _either(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(word.lower() for word in words) + ")"


_VALUES: tuple[tuple[Topic, re.Pattern[str]], ...] = (
    ("opens", re.compile(r"\b\d+ am\b")),
    ("closes", re.compile(r"\b\d+ pm\b")),
    ("price", re.compile(r"\b\d+ crowns\b")),
    ("hours", re.compile(r"\b\d+ hours\b")),
    ("bus", re.compile(r"\bbus \d+\b")),
    ("street", re.compile(rf"\b{_either(STREET_HEADS)} {_either(STREET_TAILS)}\b")),
    ("manager", re.compile(rf"\b{_either(FIRST_NAMES)} {_either(LAST_NAMES)}\b")),
    ("closed", re.compile(rf"\b{_either(WEEKDAYS)}\b")),
)
_PLACE = re.compile(rf"\b{_either(PLACES)}\b")
_TOTAL = re.compile(r"\b(\d+) tickets\b")
_NEGATION = re.compile(r"\b(not|never|no)\b")
_CONTRADICTIONS: dict[Topic, re.Pattern[str]] = {
    "opens": re.compile(r"\bclos|\buntil\b"),
    "closes": re.compile(r"\bopens\b|\bfrom\b"),
}
"""Words that turn the value into a claim about something else: ``closes at 9 am``."""


@dataclass(frozen=True)
class Claim:
    """One value stated of one place."""

    topic: Topic
    place: str | None
    value: str
    true: bool


def mentions_value(text: str) -> bool:
    """Whether lower-case ``text`` states a value of any kind."""
    return any(pattern.search(text) for _, pattern in _VALUES)


def needed_claims(intent: Intent) -> tuple[Claim, ...]:
    """Return the claims that a right and complete answer to ``intent`` makes."""
    place = intent.place
    if place is None:
        return ()
    if intent.kind == "total":
        total = intent.quantity * town().price(place)
        return (Claim("total", place, f"{total} crowns", True),)
    if intent.kind == "hours":
        return (Claim("hours", place, f"{town().hours_open(place)} hours", True),)
    return tuple(
        Claim(name, place, town().value(place, name).lower(), True) for name in intent.attributes
    )


def claims_in(sentence: str, intent: Intent) -> list[Claim]:
    """Return every claim of ``sentence``; a value without a place is about the place asked for."""
    claims: list[Claim] = []
    place = intent.place
    for clause in re.split(r"\band\b|,", sentence.lower()):
        named = _PLACE.search(clause)
        place = named.group() if named else place
        for topic, pattern in _VALUES:
            claims.extend(
                _judge(topic, place, value, clause, intent) for value in pattern.findall(clause)
            )
    return claims


def _judge(topic: Topic, place: str | None, value: str, clause: str, intent: Intent) -> Claim:
    quantity = _quantity(clause, intent)
    if topic == "price" and quantity:
        topic = "total"
    if place is None or _NEGATION.search(clause) or _contradicts(topic, clause):
        return Claim(topic, place, value, False)
    if topic == "total":
        truth = f"{quantity * town().price(place)} crowns"
    elif topic == "hours":
        truth = f"{town().hours_open(place)} hours"
    else:
        truth = town().value(place, topic).lower()
    return Claim(topic, place, value, value == truth)


def _quantity(clause: str, intent: Intent) -> int:
    """Tickets the clause speaks of; a bare amount answers for as many as were asked for."""
    stated = _TOTAL.search(clause)
    if stated:
        return int(stated.group(1))
    return intent.quantity if "ticket" not in clause else 0


def _contradicts(topic: Topic, clause: str) -> bool:
    pattern = _CONTRADICTIONS.get(topic)
    return bool(pattern and pattern.search(clause))
