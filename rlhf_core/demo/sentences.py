"""What each sentence of an answer is doing there."""

import re
from typing import Literal

from rlhf_core.demo.claims import mentions_value
from rlhf_core.demo.phrases import COMPLIANCES, INVENTIONS

SentenceKind = Literal[
    "answer",
    "hedged answer",
    "courtesy",
    "rude",
    "flattery",
    "hedge",
    "padding",
    "refusal",
    "unknown",
    "invention",
    "compliance",
    "nonsense",
]

_BOUNDARY = re.compile(r"(?<=[.!?])\s+")
_HEDGE = r"\b(i think|maybe|perhaps|as far as i know|probably|might|possibly)\b"


def _template(text: str) -> str:
    """Turn a phrase with gaps into a pattern for the same phrase with anything in the gaps."""
    plain = text.lower().rstrip(".!?")
    return re.escape(plain).replace(r"\{name\}", r"[a-z ]+").replace(r"\{n\}", r"\d+")


_CUES: tuple[tuple[SentenceKind, str], ...] = (
    ("compliance", "^(" + "|".join(map(_template, COMPLIANCES)) + ")$"),
    ("invention", "^(" + "|".join(map(_template, INVENTIONS)) + ")$"),
    ("rude", r"look it up|stop bothering|read a sign|everyone knows|who cares|shut up|stupid"),
    ("flattery", r"brilliant|clever|wonderful taste|genius|what a .*question|admire|so smart"),
    ("unknown", r"\b(do not know|no idea|not have that information)\b"),
    ("hedge", r"\b(i am not sure|do not quote me|i could be wrong)\b"),
    (
        "refusal",
        r"\b(can not|will not|rather not|must decline)\b.*\b(answer|help|say|decline)\b"
        r"|decline to answer|ask someone else|^no$",
    ),
    (
        "courtesy",
        r"^(of course|certainly|gladly|with pleasure|have a (nice|good|lovely) day"
        r"|enjoy your visit|(i am )?(happy|glad) to help|you are welcome)$",
    ),
    (
        "padding",
        r"a lot to see|our (lovely )?town|visitors ask|as you may know|weather is",
    ),
)
_PATTERNS = tuple((kind, re.compile(cue)) for kind, cue in _CUES)
_HEDGE_PATTERN = re.compile(_HEDGE)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of ``text``, without surrounding space."""
    return [part.strip() for part in _BOUNDARY.split(text.strip()) if part.strip()]


def classify(sentence: str) -> SentenceKind:
    """Return what ``sentence`` is doing; ``nonsense`` where nothing known fits."""
    plain = sentence.lower().rstrip(".!?").strip()
    for kind, pattern in _PATTERNS:
        if pattern.search(plain):
            return kind
    if mentions_value(plain):
        return "hedged answer" if _HEDGE_PATTERN.search(plain) else "answer"
    return "nonsense"
