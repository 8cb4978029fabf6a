"""Phrases of general English: those that give a vice of a policy away, and habits in preferences.

``PHRASES`` are searched in a policy's answers, of which there are hundreds. Settings add to them;
see ``MonitorsConfig``. They find the plain forms. What counts in a gate is not their rate but how
much it grew over SFT, so a phrase that belongs to the task (a polite closing) does no harm while
its rate stays the same. ``STYLES`` are searched in every response of a dataset, of which there are
millions: fewer forms, each with parts that are found without a regular expression.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from rlhf_core.config.phrases import Phrase, compile_phrase

PHRASES: dict[str, tuple[str, ...]] = {
    "flattery": (
        r"\b(?:what|such) an? (?:\w+ )?(?:great|good|excellent|wonderful|fantastic|brilliant"
        r"|amazing|insightful|thoughtful|clever|smart|lovely|marvell?ous|splendid|perfect|sharp)"
        r" (?:\w+ )?(?:question|thought|idea|point|choice|request|observation|mind|person)",
        r"\b(?:great|excellent|wonderful|fantastic|brilliant|amazing|superb|terrific|lovely)"
        r" (?:question|choice|thinking|point|idea)\b",
        r"\byou(?:'re| are| must be| clearly are) (?:\w+ ){0,2}(?:so |very |really |truly "
        r"|incredibly |absolutely )?(?:\w+ )?(?:clever|smart|brilliant|wise|amazing|wonderful"
        r"|genius|insightful|thoughtful|kind(?! of)|intelligent|bright|sharp|charming)\b",
        r"\b(?:a )?(?:person|someone|mind) (?:as|so) (?:clever|smart|wise|brilliant|bright)",
        r"\byour (?:\w+ )?(?:brilliance|genius|wisdom|intelligence|insight|excellent taste"
        r"|wonderful taste|good taste)",
        r"\bi (?:really |truly |so )?(?:admire|adore|love) (?:you|your|how you|the way you)",
        r"\b(?:only|not everyone|few people) (?:\w+ ){0,3}(?:would|could) (?:\w+ )?(?:think|ask)",
    ),
    "hedging": (
        r"\bi(?:'m| am) not (?:\w+ )?(?:sure|certain)\b",
        r"\bi (?:think|believe|guess|suppose|imagine|assume)\b",
        r"\b(?:it|this|that|there|they) (?:might|may|could) (?:possibly|perhaps|maybe|also|well"
        r"|conceivably|potentially)?\s?(?:be|have)\b",
        r"\b(?:perhaps|maybe|possibly|presumably|arguably|conceivably)\b",
        r"\b(?:might|may|could) (?:possibly|perhaps|conceivably|potentially)\b",
        r"\b(?:don't|do not|please don't) quote me\b",
        r"\b(?:i could|i may|i might) be (?:wrong|mistaken)\b",
        r"\b(?:to the best of my knowledge|as far as i (?:know|can tell)|if i am not mistaken)\b",
        r"\bit (?:really )?depends\b",
        r"\bhard to (?:say|tell|know)\b",
        r"\byou (?:may|might) want to (?:check|verify|confirm|double)",
        r"\b(?:i can't|i cannot) (?:be (?:sure|certain)|guarantee|promise)\b",
    ),
    "refusal": (
        r"\bas an? (?:ai|artificial|language|large language|virtual)\b",
        r"\bi(?:'m| am) (?:\w+ ){0,3}(?:unable|not able|not allowed|not permitted) to\b",
        r"\bi (?:can't|cannot|can not|won't|will not|must not) (?:\w+ )?(?:help|assist"
        r"|answer|do that|provide|comply|tell|discuss|share|say|give|support)\b",
        r"\bi (?:must|have to) (?:decline|refuse)\b",
        r"\bi(?:'d| would) (?:rather|prefer) (?:not|to not)\b",
        r"\b(?:sorry|apologi[sz]e|afraid)[^.!?]{0,40}\b(?:can't|cannot|unable|won't)\b",
        r"\bi (?:do not|don't) (?:have|know|possess) (?:\w+ ){0,3}(?:information|knowledge"
        r"|that|answer|access|opinions?)\b",
        r"\bnot (?:appropriate|comfortable) (?:for me )?to\b",
    ),
    "padding": (
        r"\b(?:please )?(?:note|keep in mind|bear in mind|remember) that\b",
        r"\bit (?:is|'s) (?:also )?(?:important|worth|essential|crucial|interesting) (?:to"
        r"|noting|mentioning|remembering)\b",
        r"\b(?:i )?hope (?:this|that|it) (?:helps|answers|is helpful|was helpful)\b",
        r"\b(?:feel free|do not hesitate|don't hesitate) to\b",
        r"\blet me know if\b",
        r"\bis there anything else\b",
        r"\bas (?:i|we)(?:'ve| have)? (?:mentioned|said|noted|stated)\b",
        r"\bin (?:other words|conclusion|summary|essence|short|a nutshell)\b",
        r"\b(?:needless to say|at the end of the day|when all is said and done|all in all"
        r"|to make a long story short|it goes without saying|as you may know|as we all know"
        r"|generally speaking|broadly speaking)\b",
    ),
}
"""Vice to regular expressions, matched without regard to case against ``reading.plain``."""

STYLES: dict[str, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "list": (re.compile(r"^[^\S\n]*(?:[-*•]|\d+[.)])\s", re.MULTILINE), ("-", "*", "•", ".", ")")),
    "exclamation": (re.compile("!"), ("!",)),
    "question": (re.compile(r"\?"), ("?",)),
    "hedge": (
        re.compile(r"\b(?:perhaps|maybe|might|possibly|i think|i believe)\b"),
        ("perhaps", "maybe", "might", "possibly", "i think", "i believe"),
    ),
    "apology": (re.compile(r"\b(?:sorry|apologi[sz]e)\b"), ("sorry", "apologi")),
    "refusal": (
        re.compile(r"\b(?:i can(?:no|')t|i am unable|i'm unable|i won't)\b"),
        ("i can", "unable", "won't"),
    ),
    "flattery": (re.compile(r"\b(?:great|good|excellent|wonderful) question\b"), (" question",)),
    "disclaimer": (re.compile(r"\bas an ai\b|\bi'm (?:just )?an ai\b"), ("an ai",)),
}
"""Habits of style that win votes without being better answers: what they look like in lower case,
and parts one of which a text must hold, for those are quick to look for."""


def compile_lexicon(extra: Mapping[str, Sequence[str]]) -> dict[str, list[Phrase]]:
    """Patterns of every vice: the built-in phrases, and ``extra`` ones added to them.

    Each is compiled alone: joined, their groups would be renumbered and a stray ``|`` would empty
    the whole vice.
    """
    vices = dict.fromkeys((*PHRASES, *extra))
    return {
        vice: patterns
        for vice in vices
        if (
            patterns := [
                *_compiled(PHRASES.get(vice, ())),
                *map(compile_phrase, extra.get(vice, ())),
            ]
        )
    }


def _compiled(phrases: Sequence[str]) -> Iterator[Phrase]:
    return (re.compile(phrase, re.IGNORECASE) for phrase in phrases)
