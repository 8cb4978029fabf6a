"""The raw files of the demo: demonstrations, comparisons with votes, prompts."""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from rlhf_core.demo.annotators import collect_votes
from rlhf_core.demo.answers import Habits, Manner, write_answer
from rlhf_core.demo.questions import HELDOUT_STYLES, Question, ask, draw_style
from rlhf_core.demo.reading import Intent, words_of
from rlhf_core.schema import Comparison, Conversation, Demonstration, Prompt, Record
from rlhf_core.storage.records import atomic_file

NUM_DEMONSTRATIONS = 2_400
NUM_COMPARISONS = 8_000
NUM_PROMPTS = 2_400
NUM_HELDOUT_FAMILIAR = 400
NUM_HELDOUT_STYLES = 100
NUM_HELDOUT_FACTS = 100
RAW_SEED = 11
"""Seed of the shipped files."""
MAX_WORDS = 28
"""A clerk never says more than this, however bad the habits."""

_RESERVED_ONE_IN = 6
_CLERKS = {
    "clerk-1": Habits(
        tones={"bare": 0.10, "plain": 0.30, "courteous": 0.50, "effusive": 0.08, "rude": 0.02},
        wrong=0.07, strays=0.02, incomplete=0.10, hedges=0.10, flatters=0.05, pads=0.12,
        refuses=0.03, repeats=0.03,
    ),
    "clerk-2": Habits(
        tones={"bare": 0.20, "plain": 0.40, "courteous": 0.28, "effusive": 0.04, "rude": 0.08},
        wrong=0.14, strays=0.04, incomplete=0.25, hedges=0.25, flatters=0.12, pads=0.25,
        refuses=0.06, repeats=0.06,
    ),
    "clerk-3": Habits(
        tones={"bare": 0.22, "plain": 0.36, "courteous": 0.22, "effusive": 0.05, "rude": 0.15},
        wrong=0.20, strays=0.06, incomplete=0.30, hedges=0.30, flatters=0.18, pads=0.32,
        refuses=0.08, repeats=0.08,
    ),
}  # fmt: skip
_DRAFTS = Habits(
    tones={"bare": 0.20, "plain": 0.27, "courteous": 0.30, "effusive": 0.08, "rude": 0.15},
    wrong=0.22, strays=0.10, incomplete=0.25, hedges=0.20, flatters=0.20, pads=0.20, refuses=0.08,
    repeats=0.08,
)  # fmt: skip
_CONTRAST_FRACTION = 0.45
"""Share of comparisons whose second answer is the first draft with one manner changed."""


def is_reserved(prompt: Conversation) -> bool:
    """Whether ``prompt`` is held out for evaluation: one in six, by its text alone."""
    text = "\x1f".join(f"{message.role}:{message.content}" for message in prompt)
    return hashlib.sha256(text.encode()).digest()[0] % _RESERVED_ONE_IN == 0


def write_raw(directory: Path, seed: int = RAW_SEED) -> None:
    """Write the four raw files into ``directory``, each under a temporary name first."""
    makers: dict[str, Callable[[random.Random], Iterator[Record]]] = {
        "demonstrations": _make_demonstrations,
        "comparisons": _make_comparisons,
        "prompts": _make_prompts,
        "heldout_prompts": _make_heldout_prompts,
    }
    for name, make in makers.items():
        with atomic_file(directory / f"{name}.jsonl") as file:
            for record in tqdm(make(random.Random(f"{seed}:{name}")), desc=name, unit=" rows"):
                file.write(record.model_dump_json(exclude_defaults=True).encode() + b"\n")


def _training_question(rng: random.Random) -> Question:
    while True:
        question = ask(rng, draw_style(rng))
        if not is_reserved(question.prompt) and not question.heldout_fact:
            return question


def _make_demonstrations(rng: random.Random) -> Iterator[Demonstration]:
    seen: set[tuple[Conversation, str]] = set()
    while len(seen) < NUM_DEMONSTRATIONS:
        question = _training_question(rng)
        clerk = rng.choice(list(_CLERKS))
        response = write_answer(rng, question.intent, _CLERKS[clerk].draw(rng))
        if len(words_of(response)) > MAX_WORDS:
            continue
        if (question.prompt, response) in seen:
            continue
        yield Demonstration(
            demonstration_id=f"demonstration-{len(seen):05d}",
            prompt=question.prompt,
            response=response,
            source=clerk,
        )
        seen.add((question.prompt, response))


def _make_comparisons(rng: random.Random) -> Iterator[Comparison]:
    seen: set[tuple[Conversation, frozenset[str]]] = set()
    while len(seen) < NUM_COMPARISONS:
        question = _training_question(rng)
        responses = _draw_pair(rng, question.intent)
        key = (question.prompt, frozenset(responses))
        too_long = max(len(words_of(response)) for response in responses) > MAX_WORDS
        if key in seen or too_long or len(key[1]) < len(responses):
            continue
        yield Comparison(
            comparison_id=f"comparison-{len(seen):05d}",
            prompt=question.prompt,
            response_a=responses[0],
            response_b=responses[1],
            votes=collect_votes(rng, question.prompt, *responses),
            source="help-desk",
        )
        seen.add(key)


def _draw_pair(rng: random.Random, intent: Intent) -> tuple[str, str]:
    first = _DRAFTS.draw(rng)
    contrast = rng.random() < _CONTRAST_FRACTION
    second = _change_one(rng, first) if contrast else _DRAFTS.draw(rng)
    pair = [write_answer(rng, intent, manner) for manner in (first, second)]
    rng.shuffle(pair)
    return pair[0], pair[1]


def _change_one(rng: random.Random, manner: Manner) -> Manner:
    changes: tuple[Manner, ...] = (
        replace(manner, wrong=not manner.wrong),
        replace(manner, strays=not manner.strays),
        replace(manner, refuses=not manner.refuses),
        replace(manner, tone="plain" if manner.tone != "plain" else "courteous"),
        replace(manner, tone="courteous" if manner.tone != "courteous" else "bare"),
        replace(manner, hedges=not manner.hedges),
        replace(manner, flatters=not manner.flatters),
        replace(manner, pads=not manner.pads),
        replace(manner, repeats=not manner.repeats),
    )
    return rng.choices(changes, weights=(6, 3, 1, 2, 2, 1, 1, 1, 1))[0]


def _make_prompts(rng: random.Random) -> Iterator[Prompt]:
    questions = _distinct(lambda: _training_question(rng), NUM_PROMPTS)
    for i, question in enumerate(questions):
        yield _as_prompt(f"prompt-{i:05d}", question)


def _make_heldout_prompts(rng: random.Random) -> Iterator[Prompt]:
    def draw(style_known: bool, fact_known: bool) -> Question:
        while True:
            style = draw_style(rng) if style_known else rng.choice(HELDOUT_STYLES)
            question = ask(rng, style)
            if is_reserved(question.prompt) and question.heldout_fact != fact_known:
                return question

    questions = [
        *_distinct(lambda: draw(True, True), NUM_HELDOUT_FAMILIAR),
        *_distinct(lambda: draw(False, True), NUM_HELDOUT_STYLES),
        *_distinct(lambda: draw(True, False), NUM_HELDOUT_FACTS),
    ]
    rng.shuffle(questions)
    for i, question in enumerate(questions):
        yield _as_prompt(f"heldout-{i:05d}", question)


def _distinct(draw: Callable[[], Question], number: int) -> list[Question]:
    found: dict[Conversation, Question] = {}
    while len(found) < number:
        question = draw()
        found.setdefault(question.prompt, question)
    return list(found.values())


def _as_prompt(prompt_id: str, question: Question) -> Prompt:
    facts = "heldout" if question.heldout_fact else "seen"
    return Prompt(
        prompt_id=prompt_id, prompt=question.prompt, tags={"style": question.style, "facts": facts}
    )
