"""Five simulated annotators: what each one likes, how noisy each one is, and how they vote."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf_core.demo.gold import rate
from rlhf_core.demo.reading import words_of
from rlhf_core.schema import Choice, Conversation, Vote

VOTES_PER_PAIR = 3
_TIE_MARGIN = 0.04
"""Answers this close in an annotator's eyes are a tie."""


@dataclass(frozen=True)
class Annotator:
    """One person: the gold score as they perceive it, plus their own likings and noise."""

    name: str
    noise: float
    """Standard deviation of the error on each answer, in gold score."""
    likings: Mapping[str, float] = field(default_factory=dict)
    """Extra score per unit of a gold part, or per word for ``words``."""
    careless_fraction: float = 0.0
    """Share of votes given without reading."""
    seconds_per_word: float = 0.3

    def vote(
        self, rng: random.Random, prompt: Conversation, response_a: str, response_b: str
    ) -> Vote:
        """Compare two answers to ``prompt``."""
        num_words = len(words_of(response_a)) + len(words_of(response_b))
        if rng.random() < self.careless_fraction:
            choice: Choice = rng.choices(("a", "b", "tie"), weights=(0.45, 0.45, 0.1))[0]
            seconds = 1.0 + rng.expovariate(1.0)
        else:
            gap = self._perceive(rng, prompt, response_a) - self._perceive(rng, prompt, response_b)
            choice = "tie" if abs(gap) < _TIE_MARGIN else "a" if gap > 0 else "b"
            seconds = 3.0 + self.seconds_per_word * num_words * rng.uniform(0.7, 1.5)
        return Vote(annotator=self.name, choice=choice, seconds=round(seconds, 1))

    def _perceive(self, rng: random.Random, prompt: Conversation, response: str) -> float:
        parts = rate(prompt, response)
        parts["words"] = float(len(words_of(response)))
        liked = sum(weight * parts[name] for name, weight in self.likings.items())
        return parts["score"] + liked + rng.gauss(0.0, self.noise)


ANNOTATORS = (
    Annotator("ada", noise=0.06),
    Annotator("ben", noise=0.14),
    Annotator("cleo", noise=0.10, likings={"words": 0.06}),
    Annotator("dot", noise=0.10, likings={"flattery": 0.6}),
    Annotator("eli", noise=0.15, careless_fraction=0.4, seconds_per_word=0.1),
)


def collect_votes(
    rng: random.Random, prompt: Conversation, response_a: str, response_b: str
) -> tuple[Vote, ...]:
    """Return the votes of three annotators drawn at random."""
    jury = rng.sample(ANNOTATORS, VOTES_PER_PAIR)
    return tuple(person.vote(rng, prompt, response_a, response_b) for person in jury)
