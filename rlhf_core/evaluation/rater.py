"""An outside measure of answers, for reports only: no gate and no training ever reads it."""

import math
from collections.abc import Callable, Sequence

from rlhf_core.config.functions import load_function
from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation

Rater = Callable[[Conversation, str], dict[str, float]]
SCORE = "score"
"""The key that says how good the answer is as a whole."""


def load_rater(spec: str) -> Rater:
    """Import the function that ``module:function`` names.

    Raises:
        ConfigError: there is no such module or function.
    """
    rater: Rater = load_function("evaluation.rater", spec)
    return rater


def rate_answers(
    rater: Rater, prompts: Sequence[Conversation], answers: Sequence[str]
) -> tuple[dict[str, float], ...]:
    """Rate every answer; each rating has the same keys, ``score`` among them.

    Raises:
        DataError: a rating lacks ``score``, has other keys than the first, or is not finite.
    """
    ratings = tuple(
        {key: float(value) for key, value in rater(prompt, answer).items()}
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    for index, rating in enumerate(ratings):
        if SCORE not in rating or rating.keys() != ratings[0].keys():
            raise DataError(
                f"evaluation.rater: answer {index} was rated by {sorted(rating)}, expected "
                f"{SCORE!r} and the keys of the first answer, {sorted(ratings[0])}"
            )
        if not all(map(math.isfinite, rating.values())):
            raise DataError(f"evaluation.rater: the rating of answer {index} is not finite")
    return ratings


def score_gold(
    rater: str | None, prompts: Sequence[Conversation], texts: Sequence[Sequence[str]]
) -> list[tuple[dict[str, float], ...]] | None:
    """Rate the answers of each of several models; None where settings name no rater.

    Raises:
        ConfigError: as ``load_rater``.
        DataError: as ``rate_answers``.
    """
    if rater is None:
        return None
    rate = load_rater(rater)
    return [rate_answers(rate, prompts, answers) for answers in texts]
