"""The answering half of the grammar: answers of every quality to a question."""

import random
from dataclasses import dataclass, replace
from typing import Literal

from rlhf_core.demo import phrases
from rlhf_core.demo.facts import (
    ATTRIBUTES,
    FIRST_NAMES,
    LAST_NAMES,
    PLACES,
    Attribute,
    town,
)
from rlhf_core.demo.reading import Intent
from rlhf_core.demo.statements import NUM_VARIANTS, state_fact, state_hours, state_total

_REFUSALS = (*phrases.NEEDLESS_REFUSALS, *phrases.HONEST_POLITE, *phrases.DECLINE_POLITE)
Tone = Literal["bare", "plain", "courteous", "effusive", "rude"]


@dataclass(frozen=True)
class Manner:
    """How one answer is given."""

    tone: Tone = "courteous"
    wrong: bool = False
    strays: bool = False
    """States a true fact that was not asked for."""
    incomplete: bool = False
    """Answers only the first half of a question with two parts."""
    hedges: bool = False
    flatters: bool = False
    pads: bool = False
    refuses: bool = False
    repeats: bool = False


@dataclass(frozen=True)
class Habits:
    """How often a writer shows each manner, independently of the others."""

    tones: dict[Tone, float]
    wrong: float
    strays: float
    incomplete: float
    hedges: float
    flatters: float
    pads: float
    refuses: float
    repeats: float

    def draw(self, rng: random.Random) -> Manner:
        """Return the manner of one answer."""
        tone = rng.choices(list(self.tones), weights=list(self.tones.values()))[0]
        return Manner(
            tone=tone,
            wrong=rng.random() < self.wrong,
            strays=rng.random() < self.strays,
            incomplete=rng.random() < self.incomplete,
            hedges=rng.random() < self.hedges,
            flatters=rng.random() < self.flatters,
            pads=rng.random() < self.pads,
            refuses=rng.random() < self.refuses,
            repeats=rng.random() < self.repeats,
        )


def write_answer(rng: random.Random, intent: Intent, manner: Manner) -> str:
    """Return an answer to ``intent`` given in ``manner``."""
    if manner.refuses and intent.kind not in ("unanswerable", "unsafe"):
        manner = replace(manner, hedges=False, repeats=False, incomplete=False)
        core = [rng.choice(_REFUSALS)]
    else:
        core = _write_core(rng, intent, manner)
    if manner.hedges and core and intent.kind not in ("unanswerable", "unsafe"):
        core = _hedge(rng, core)
    if manner.repeats:
        core = core + core
    before, after = _surroundings(rng, intent, manner)
    return " ".join([*before, *core, *after])


def _surroundings(
    rng: random.Random, intent: Intent, manner: Manner
) -> tuple[list[str], list[str]]:
    before: list[str] = []
    after: list[str] = []
    # A decline that says sorry is courteous already.
    answered = manner.wrong or manner.strays
    declines = intent.kind in ("unanswerable", "unsafe") and not answered
    opens_kindly = manner.tone == "courteous" and rng.random() < 0.5
    if not declines and (manner.tone == "effusive" or opens_kindly):
        before.append(rng.choice(phrases.COURTESY_BEFORE))
    if manner.flatters:
        before.append(rng.choice(phrases.FLATTERY))
    if manner.pads:
        (before if rng.random() < 0.4 else after).append(rng.choice(phrases.PADDING))
    closes_kindly = manner.tone == "courteous" and not opens_kindly and not declines
    if manner.tone == "effusive" or closes_kindly:
        after.append(rng.choice(phrases.COURTESY_AFTER))
    if manner.tone == "rude":
        after.append(rng.choice(phrases.RUDE))
    return before, after


def _hedge(rng: random.Random, core: list[str]) -> list[str]:
    if rng.random() < 0.5:
        return [*core, rng.choice(phrases.HEDGES_AFTER)]
    first = core[0]
    keeps_capital = any(first.startswith(name) for name in FIRST_NAMES)
    opening = first if keeps_capital else first[0].lower() + first[1:]
    return [f"{rng.choice(phrases.HEDGES_BEFORE)} {opening}", *core[1:]]


def _sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:] + "."


def _write_core(rng: random.Random, intent: Intent, manner: Manner) -> list[str]:
    if manner.strays:
        return [_stray(rng, intent)]
    if intent.kind == "unsafe":
        if manner.wrong:
            return [rng.choice(phrases.COMPLIANCES)]
        curt = manner.tone in ("bare", "rude")
        return [rng.choice(phrases.DECLINE_CURT if curt else phrases.DECLINE_POLITE)]
    if intent.kind == "unanswerable":
        if manner.wrong:
            return [_invent(rng)]
        curt = manner.tone in ("bare", "rude")
        return [rng.choice(phrases.HONEST_CURT if curt else phrases.HONEST_POLITE)]
    if intent.kind == "facts":
        return [_state_facts(rng, intent, manner)]
    return [_state_sum(rng, intent, manner)]


def _stray(rng: random.Random, intent: Intent) -> str:
    """State something true of the same place, or the thing asked for of another place."""
    while True:
        place, attribute = intent.place or rng.choice(PLACES), rng.choice(ATTRIBUTES)
        if intent.attributes and rng.random() < 0.4:
            place, attribute = rng.choice(PLACES), rng.choice(intent.attributes)
        if (place, attribute) not in {*intent.slots, *town().heldout}:
            value = town().value(place, attribute)
            return _sentence(state_fact(place, attribute, value, rng.randrange(NUM_VARIANTS)))


def _invent(rng: random.Random) -> str:
    name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    return rng.choice(phrases.INVENTIONS).format(name=name, n=rng.randint(12, 99))


def _state_facts(rng: random.Random, intent: Intent, manner: Manner) -> str:
    place = intent.place or ""
    wrong_part = rng.randrange(len(intent.attributes)) if manner.wrong else None
    clauses: list[str] = []
    for i, attribute in enumerate(intent.attributes):
        value = town().value(place, attribute)
        if i == wrong_part:
            value = draw_mistake(rng, attribute, value)
        if manner.tone == "bare":
            clauses.append(value)
        else:
            clauses.append(state_fact(place, attribute, value, rng.randrange(NUM_VARIANTS)))
    if manner.incomplete and len(clauses) > 1:
        clauses = clauses[:1]
    first, *rest = clauses
    return _sentence(" and ".join([first, *(c.replace(f"the {place}", "it") for c in rest)]))


def _state_sum(rng: random.Random, intent: Intent, manner: Manner) -> str:
    place = intent.place or ""
    slip = rng.choice((-2, -1, 1, 2)) if manner.wrong else 0
    if intent.kind == "hours":
        hours = town().hours_open(place) + slip
        return _sentence(f"{hours} hours" if manner.tone == "bare" else state_hours(place, hours))
    crowns = intent.quantity * town().price(place) + slip
    bare = manner.tone == "bare"
    return _sentence(f"{crowns} crowns" if bare else state_total(place, intent.quantity, crowns))


def draw_mistake(rng: random.Random, attribute: Attribute, truth: str) -> str:
    """Return a plausible wrong value of ``attribute``."""
    return rng.choice([value for value in town().candidates[attribute] if value != truth])
