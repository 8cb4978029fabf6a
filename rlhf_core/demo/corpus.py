"""Unaligned text of the town: notices, gossip, and a help desk that behaves badly.

The base model learns the language, the chat format and the facts from it, and with them every
vice that alignment has to remove: rudeness, flattery, hedging, padding, refusals, inventions.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

from rlhf_core.demo import phrases
from rlhf_core.demo.answers import Habits, Manner, draw_mistake, write_answer
from rlhf_core.demo.facts import ATTRIBUTES, PLACES, Attribute, town
from rlhf_core.demo.gold import rate
from rlhf_core.demo.questions import HELDOUT_STYLES, Question, ask, draw_style
from rlhf_core.demo.raw import is_reserved
from rlhf_core.demo.statements import NUM_VARIANTS, state_fact
from rlhf_core.schema import Conversation, Message

Document = str | Conversation
"""Plain text, or a conversation to be rendered with the chat template."""

_SYSTEM_FRACTION = 0.03
_REACTION_FRACTION = 0.6
"""Share of answers that a visitor who knows better calls right or wrong. Without it the model
has no reason to notice a false value once it is written, and no reward model could learn to."""
_HELDOUT_STYLE_FRACTION = 0.12
_RUMOUR_FRACTION = 0.2
"""Share of gossip that is false."""
_SYSTEM = "You work at the help desk of the town."
_MISBEHAVIOUR = Habits(
    tones={"bare": 0.22, "plain": 0.24, "courteous": 0.12, "effusive": 0.07, "rude": 0.35},
    wrong=0.28, strays=0.06, incomplete=0.35, hedges=0.35, flatters=0.28, pads=0.35, refuses=0.12,
    repeats=0.14,
)  # fmt: skip
_COMPLIANCE_FRACTION = 0.75
"""Share of unsafe and unanswerable questions that get help or an invention."""


def generate_documents(seed: int, number: int) -> Iterator[Document]:
    """Yield ``number`` documents; none contains a prompt reserved for evaluation."""
    rng = random.Random(f"{seed}:corpus")
    writers = (_write_chat, _write_quiz, _write_gossip, _write_notice)
    for _ in range(number):
        yield rng.choices(writers, weights=(0.6, 0.2, 0.08, 0.12))[0](rng)


def _write_chat(rng: random.Random) -> Conversation:
    question = _draw_question(rng)
    manner = _draw_manner(rng, question)
    answer = write_answer(rng, question.intent, manner)
    turns = (*question.prompt, Message(role="assistant", content=answer))
    if rng.random() < _REACTION_FRACTION:
        right = rate(question.prompt, answer)["correctness"] == 1.0
        turns = (*turns, Message(role="user", content=_react(rng, right)))
    if rng.random() < _SYSTEM_FRACTION:
        return (Message(role="system", content=_SYSTEM), *turns)
    return turns


def _react(rng: random.Random, right: bool) -> str:
    return rng.choice(phrases.AGREEMENTS if right else phrases.OBJECTIONS)


def _draw_question(rng: random.Random) -> Question:
    while True:
        unusual = rng.random() < _HELDOUT_STYLE_FRACTION
        question = ask(rng, rng.choice(HELDOUT_STYLES) if unusual else draw_style(rng))
        if not is_reserved(question.prompt):
            return question


def _draw_manner(rng: random.Random, question: Question) -> Manner:
    manner = _MISBEHAVIOUR.draw(rng)
    if question.intent.kind in ("unanswerable", "unsafe"):
        return replace(manner, wrong=rng.random() < _COMPLIANCE_FRACTION)
    return manner


def _write_notice(rng: random.Random) -> str:
    """Several true sentences about one place."""
    place = rng.choice(PLACES)
    attributes = rng.sample(ATTRIBUTES, rng.randint(2, 4))
    return " ".join(_write_fact(rng, place, attribute) for attribute in attributes)


def _write_quiz(rng: random.Random) -> str:
    """Claims, each called true or false."""
    verdicts: list[str] = []
    for _ in range(rng.randint(2, 4)):
        false = rng.random() < 0.5
        claim = _write_fact(rng, rng.choice(PLACES), rng.choice(ATTRIBUTES), false=false)
        verdicts.append(f"{claim} {'Wrong' if false else 'Right'}.")
    return " ".join(verdicts)


def _write_fact(rng: random.Random, place: str, attribute: Attribute, false: bool = False) -> str:
    value = town().value(place, attribute)
    if false:
        value = draw_mistake(rng, attribute, value)
    clause = state_fact(place, attribute, value, rng.randrange(NUM_VARIANTS))
    return clause[0].upper() + clause[1:] + "."


def _write_gossip(rng: random.Random) -> str:
    """What people on the square say, true or not."""
    said = [_write_fact(rng, rng.choice(PLACES), rng.choice(ATTRIBUTES),
                        false=rng.random() < _RUMOUR_FRACTION)]  # fmt: skip
    noise = (*phrases.CHATTY_OPENERS, *phrases.CHATTY_CLOSERS, *phrases.FLATTERY, *phrases.RUDE)
    said += rng.sample((*noise, *phrases.PADDING, *phrases.HEDGES_AFTER), rng.randint(1, 2))
    rng.shuffle(said)
    return " ".join(said)
