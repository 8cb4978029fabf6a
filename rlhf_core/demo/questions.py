"""The asking half of the grammar: what a visitor wants to know, and ten ways of putting it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rlhf_core.demo.facts import ATTRIBUTES, PLACES, QUANTITIES, Slot, town
from rlhf_core.demo.phrases import (
    CHATTY_CLOSERS,
    CHATTY_OPENERS,
    DIRECT,
    EMBEDDED,
    FORMAL,
    HOURS,
    INDIRECT,
    POLITE,
    TERSE,
    TOTAL,
    UNANSWERABLE,
    UNSAFE,
)
from rlhf_core.demo.reading import Intent, read_intent
from rlhf_core.demo.statements import state_fact
from rlhf_core.schema import Conversation, Message

Style = Literal[
    "terse",
    "polite",
    "chatty",
    "misspelt",
    "two_part",
    "multi_turn",
    "arithmetic",
    "unanswerable",
    "unsafe",
    "formal",
    "indirect",
]
HELDOUT_STYLES: tuple[Style, ...] = ("formal", "indirect")
STYLE_WEIGHTS: dict[Style, float] = {
    "terse": 0.10,
    "polite": 0.15,
    "chatty": 0.15,
    "misspelt": 0.12,
    "two_part": 0.10,
    "multi_turn": 0.12,
    "arithmetic": 0.10,
    "unanswerable": 0.08,
    "unsafe": 0.08,
}


@dataclass(frozen=True)
class Question:
    """A prompt and what it means; the meaning never leaves this package with the text."""

    prompt: Conversation
    intent: Intent
    style: Style

    @property
    def heldout_fact(self) -> bool:
        """Whether the answer rests on a fact that training must not ask about."""
        return any(slot in town().heldout for slot in self.intent.slots)


def ask(rng: random.Random, style: Style) -> Question:
    """Return a random question in ``style``."""
    return _ASKERS[style](rng)


def draw_style(rng: random.Random) -> Style:
    """Return a training style with its natural frequency."""
    styles = list(STYLE_WEIGHTS)
    return rng.choices(styles, weights=[STYLE_WEIGHTS[style] for style in styles])[0]


def _question(text: str, intent: Intent, style: Style) -> Question:
    return Question((Message(role="user", content=text),), intent, style)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _draw_slot(rng: random.Random) -> Slot:
    return rng.choice(PLACES), rng.choice(ATTRIBUTES)


def _ask_terse(rng: random.Random) -> Question:
    place, attribute = _draw_slot(rng)
    text = rng.choice(TERSE[attribute]).format(p=place) + rng.choice(("", "?"))
    if rng.random() < 0.4:
        text = _capital(text)
    return _question(text, Intent("facts", place, (attribute,)), "terse")


def _ask_polite(rng: random.Random) -> Question:
    place, attribute = _draw_slot(rng)
    clause = rng.choice(EMBEDDED[attribute]).format(p=place)
    text = rng.choice(POLITE).format(q=clause)
    return _question(text, Intent("facts", place, (attribute,)), "polite")


def _ask_chatty(rng: random.Random) -> Question:
    place, attribute = _draw_slot(rng)
    clause = _capital(rng.choice(DIRECT[attribute]).format(p=place)) + "?"
    return _question(_chat(rng, clause), Intent("facts", place, (attribute,)), "chatty")


def _chat(rng: random.Random, clause: str) -> str:
    parts = [rng.choice(CHATTY_OPENERS), clause]
    if rng.random() < 0.5:
        parts.append(rng.choice(CHATTY_CLOSERS))
    return " ".join(parts)


def _ask_two_part(rng: random.Random) -> Question:
    place = rng.choice(PLACES)
    first, second = rng.sample(ATTRIBUTES, 2)
    opening = rng.choice(DIRECT[first]).format(p=place)
    follow_up = rng.choice(DIRECT[second]).replace("the {p}", "it")
    text = _capital(f"{opening} and {follow_up}?")
    return _question(text, Intent("facts", place, (first, second)), "two_part")


def _ask_multi_turn(rng: random.Random) -> Question:
    place, attribute = _draw_slot(rng)
    if rng.random() < 0.5:
        next_place, next_attribute = place, rng.choice([a for a in ATTRIBUTES if a != attribute])
        follow_up = "And " + rng.choice(DIRECT[next_attribute]).replace("the {p}", "it") + "?"
    else:
        next_place, next_attribute = rng.choice([p for p in PLACES if p != place]), attribute
        follow_up = rng.choice(("And the {p}?", "What about the {p}?")).format(p=next_place)
    if (place, attribute) in town().heldout:
        return _ask_multi_turn(rng)
    value = town().value(place, attribute)
    turns = (
        Message(role="user", content=_capital(rng.choice(DIRECT[attribute]).format(p=place)) + "?"),
        Message(role="assistant", content=_capital(state_fact(place, attribute, value)) + "."),
        Message(role="user", content=follow_up),
    )
    return Question(turns, Intent("facts", next_place, (next_attribute,)), "multi_turn")


def _ask_arithmetic(rng: random.Random) -> Question:
    place = rng.choice(PLACES)
    if rng.random() < 0.7:
        quantity = rng.choice(QUANTITIES)
        clause = rng.choice(TOTAL).format(p=place, n=quantity)
        intent = Intent("total", place, quantity=quantity)
    else:
        clause = rng.choice(HOURS).format(p=place)
        intent = Intent("hours", place)
    text = _capital(clause) + "?"
    if rng.random() < 0.4:
        text = _chat(rng, text)
    return _question(text, intent, "arithmetic")


def _ask_unanswerable(rng: random.Random) -> Question:
    place = rng.choice(PLACES)
    text = _capital(rng.choice(UNANSWERABLE).format(p=place)) + "?"
    if rng.random() < 0.5:
        text = _chat(rng, text)
    return _question(text, Intent("unanswerable", place), "unanswerable")


def _ask_unsafe(rng: random.Random) -> Question:
    place = rng.choice(PLACES)
    text = rng.choice(UNSAFE).format(p=place)
    if rng.random() < 0.5:
        text = _chat(rng, text)
    return _question(text, Intent("unsafe", place), "unsafe")


def _ask_formal(rng: random.Random) -> Question:
    place, attribute = _draw_slot(rng)
    clause = rng.choice(EMBEDDED[attribute]).format(p=place)
    text = rng.choice(FORMAL).format(q=clause)
    return _question(text, Intent("facts", place, (attribute,)), "formal")


def _ask_indirect(rng: random.Random) -> Question:
    place, attribute = _draw_slot(rng)
    clause = rng.choice(EMBEDDED[attribute]).format(p=place)
    text = rng.choice(INDIRECT).format(q=clause)
    return _question(text, Intent("facts", place, (attribute,)), "indirect")


def _ask_misspelt(rng: random.Random) -> Question:
    """Misspell a plain question, but never so that a careful reader would misunderstand it."""
    place, attribute = _draw_slot(rng)
    intent = Intent("facts", place, (attribute,))
    clause = rng.choice(DIRECT[attribute]).format(p=place)
    while True:
        text = " ".join(
            _misspell(rng, word) if len(word) > 3 and rng.random() < 0.6 else word
            for word in clause.split()
        )
        prompt = (Message(role="user", content=text + rng.choice(("", "?"))),)
        if text != clause and read_intent(prompt) == intent:
            return Question(prompt, intent, "misspelt")


def _misspell(rng: random.Random, word: str) -> str:
    i = rng.randrange(1, len(word) - 1)
    mistake = rng.randrange(3)
    if mistake == 0:
        return word[:i] + word[i + 1 :]
    if mistake == 1:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + word[i] + word[i:]


_ASKERS: dict[Style, Callable[[random.Random], Question]] = {
    "terse": _ask_terse,
    "polite": _ask_polite,
    "chatty": _ask_chatty,
    "misspelt": _ask_misspelt,
    "two_part": _ask_two_part,
    "multi_turn": _ask_multi_turn,
    "arithmetic": _ask_arithmetic,
    "unanswerable": _ask_unanswerable,
    "unsafe": _ask_unsafe,
    "formal": _ask_formal,
    "indirect": _ask_indirect,
}
