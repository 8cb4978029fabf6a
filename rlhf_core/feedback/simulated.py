"""Simulated annotators: a function that votes at once, named in the settings."""

import random
from collections.abc import Callable, Iterable

from rlhf_core.config.functions import load_function
from rlhf_core.feedback.ballots import Ballot
from rlhf_core.schema import Comparison, Conversation, Vote

Annotators = Callable[[random.Random, Conversation, str, str], Iterable[Vote]]


def load_annotators(spec: str) -> Annotators:
    """Import the function that ``module:function`` names.

    Raises:
        ConfigError: there is no such module or function.
    """
    annotators: Annotators = load_function("feedback.labeler.annotators", spec)
    return annotators


def simulate(annotators: Annotators, pair: Comparison, seed: int) -> Ballot:
    """Return the votes on a pair; they depend on the seed and the pair alone."""
    rng = random.Random(f"{seed}:{pair.comparison_id}")
    votes = tuple(annotators(rng, pair.prompt, pair.response_a, pair.response_b))
    return Ballot(comparison_id=pair.comparison_id, votes=votes)
