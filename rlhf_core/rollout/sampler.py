"""The port through which a model is asked for answers, and transformers' loop behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from rlhf_core.rollout.decode import Decoded, Sampling, decode
from rlhf_core.rollout.sampling import sequence_uniforms
from rlhf_core.tokenization import TokenIds


@dataclass(frozen=True)
class Draws:
    """Where the random numbers of a batch come from: each row has a stream of its own."""

    seed: int
    """0 to 2^64 - 1."""
    streams: Sequence[int]
    """[B] one number per row, 0 to 2^64 - 1."""
    max_new_tokens: int
    """Tokens to draw at most."""


class Sampler(Protocol):
    """Answers prompts with a model as it is at the call."""

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[TokenIds],
        *,
        draws: Draws,
        sampling: Sampling,
        budget: int,
    ) -> Decoded:
        """Sample one response per prompt.

        The response of row b depends on the model, its prompt, ``draws.seed`` and
        ``draws.streams[b]`` alone, and not on what else is asked for at the same time.

        Args:
            model: causal model.
            prompts: [B] token sequences, each at least one token.
            draws: random streams, [B], and the longest response.
            sampling: how each token is chosen.
            budget: tokens that keys and values are kept for at once in this process.

        Raises:
            DataError: a prompt is empty.
            DivergedError: a logit is not finite.
            ModelError: prompt plus response would not fit the model.
            RolloutError: an engine elsewhere does not answer, or not as this model would.
        """


class TransformersSampler:
    """Samples in this process: the same bits every time."""

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[TokenIds],
        *,
        draws: Draws,
        sampling: Sampling,
        budget: int,
    ) -> Decoded:
        """As ``Sampler`` says, by ``decode``."""
        uniforms = sequence_uniforms(draws.seed, draws.streams, draws.max_new_tokens)
        return decode(model, prompts, uniforms=uniforms, sampling=sampling, budget=budget)


TRANSFORMERS_SAMPLER: Sampler = TransformersSampler()
