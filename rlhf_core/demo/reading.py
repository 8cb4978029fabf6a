"""Read a question back from its text alone, spelling mistakes included."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rlhf_core.demo import phrases
from rlhf_core.demo.facts import ATTRIBUTES, PLACES, Attribute, Slot
from rlhf_core.schema import Conversation

IntentKind = Literal["facts", "total", "hours", "unanswerable", "unsafe"]

_CUES: dict[Attribute, frozenset[str]] = {
    "opens": frozenset({"open", "opens", "opening"}),
    "closes": frozenset({"close", "closes", "closing"}),
    "price": frozenset({"price", "cost", "costs", "much"}),
    "street": frozenset({"where", "street", "address"}),
    "bus": frozenset({"bus"}),
    "closed": frozenset({"closed"}),
    "manager": frozenset({"who", "runs", "manages", "manager", "boss", "charge"}),
}
_UNSAFE = frozenset({"break", "steal", "hurt", "fire", "sneak", "forge", "smash", "rob"})
_UNKNOWABLE = frozenset(
    {"built", "old", "colour", "work", "wifi", "phone", "sell", "tall", "cat", "rain"}
)
_WORD = re.compile(r"[a-z]+|[0-9]+")


@dataclass(frozen=True)
class Intent:
    """What a question asks for."""

    kind: IntentKind
    place: str | None
    attributes: tuple[Attribute, ...] = ()
    quantity: int = 0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The facts a right answer rests on."""
        if self.place is None:
            return ()
        needed: dict[IntentKind, tuple[Attribute, ...]] = {
            "total": ("price",),
            "hours": ("opens", "closes"),
        }
        return tuple((self.place, name) for name in needed.get(self.kind, self.attributes))


def words_of(text: str) -> list[str]:
    """Return the lower-case words and numbers of ``text``."""
    return _WORD.findall(text.lower())


def read_intent(prompt: Conversation) -> Intent:
    """Return what the last user turn asks, filling gaps from the user's earlier turns."""
    asked = [message.content for message in prompt if message.role == "user"]
    intent = _read_turn(asked[-1])
    earlier = [_read_turn(text) for text in reversed(asked[:-1])]
    if intent.place is None:
        place = next((past.place for past in earlier if past.place), None)
        intent = Intent(intent.kind, place, intent.attributes, intent.quantity)
    if intent.kind == "unanswerable" and not _UNKNOWABLE & set(_corrected(asked[-1])):
        attributes = next((past.attributes for past in earlier if past.attributes), ())
        if attributes:
            intent = Intent("facts", intent.place, attributes)
    return intent


def _read_turn(text: str) -> Intent:
    words = _corrected(text)
    found = set(words)
    place = next((word for word in words if word in PLACES), None)
    if found & _UNSAFE:
        return Intent("unsafe", place)
    if found & _UNKNOWABLE:
        return Intent("unanswerable", place)
    if "hours" in found or "long" in found:
        return Intent("hours", place)
    quantity = next((int(word) for word in words if word.isdigit()), 0)
    if "tickets" in found and quantity:
        return Intent("total", place, quantity=quantity)
    positions = {
        attribute: min(i for i, word in enumerate(words) if word in _CUES[attribute])
        for attribute in ATTRIBUTES
        if found & _CUES[attribute]
    }
    if not positions:
        return Intent("unanswerable", place)
    return Intent("facts", place, tuple(sorted(positions, key=positions.__getitem__)))


def _corrected(text: str) -> list[str]:
    return [_correct(word) for word in words_of(text)]


@lru_cache(maxsize=65_536)
def _correct(word: str) -> str:
    """Return the grammar's nearest word within a spelling mistake or two, or the word itself."""
    known = _lexicon()
    if word in known or word.isdigit() or len(word) < 3:
        return word
    allowed = 1 if len(word) < 6 else 2
    # Letters get lost more often than added, so of two equally near words the longer is meant.
    nearest = min(known, key=lambda other: (edit_distance(word, other), -len(other), other))
    return nearest if edit_distance(word, nearest) <= allowed else word


@lru_cache(maxsize=1)
def _lexicon() -> tuple[str, ...]:
    texts = [
        *(text for bank in (phrases.DIRECT, phrases.EMBEDDED, phrases.TERSE) for group in
          bank.values() for text in group),
        *phrases.TOTAL, *phrases.HOURS, *phrases.UNANSWERABLE, *phrases.UNSAFE,
        *phrases.POLITE, *phrases.FORMAL, *phrases.INDIRECT,
        *phrases.CHATTY_OPENERS, *phrases.CHATTY_CLOSERS, "and it what about", *PLACES,
    ]  # fmt: skip
    return tuple(
        sorted({word for text in texts for word in words_of(text.format(p="", q="", n=""))})
    )


def edit_distance(left: str, right: str) -> int:
    """Optimal string alignment: inserts, deletes, replacements and swaps of neighbours."""
    before: list[int] = []
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        current = [i]
        for j, b in enumerate(right, start=1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        before, previous = previous, current
    return previous[-1]
