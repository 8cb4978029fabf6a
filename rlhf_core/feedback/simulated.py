"""Simulated annotators: a function that votes at once, named in the settings."""

import importlib
import random
from collections.abc import Callable, Iterable

from rlhf_core.errors import ConfigError
from rlhf_core.feedback.ballots import Ballot
from rlhf_core.schema import Comparison, Conversation, Vote

Annotators = Callable[[random.Random, Conversation, str, str], Iterable[Vote]]

_KEY = "feedback.labeler.annotators"


def load_annotators(spec: str) -> Annotators:
    """Import the function that ``module:function`` names.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, function = spec.partition(":")
    if not module or not function:
        raise ConfigError(f"{_KEY}: expected module:function, found {spec!r}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{_KEY}: {spec}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{_KEY}: {spec} is not a function")
    annotators: Annotators = found
    return annotators


def simulate(annotators: Annotators, pair: Comparison, seed: int) -> Ballot:
    """Return the votes on a pair; they depend on the seed and the pair alone."""
    rng = random.Random(f"{seed}:{pair.comparison_id}")
    votes = tuple(annotators(rng, pair.prompt, pair.response_a, pair.response_b))
    return Ballot(comparison_id=pair.comparison_id, votes=votes)
