"""Random numbers and the choice of one token; neither depends on the rest of the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

UNITS = 1 << 40
"""Units of weight in the most probable token, where weights are whole numbers."""


def sequence_uniforms(seed: int, streams: Sequence[int], length: int) -> Tensor:
    """Uniform numbers of every sequence, each from a counter-based generator of its own.

    Row b depends on ``seed`` and ``streams[b]`` alone, and a longer ``length`` only appends, so a
    response does not change with the batch it was sampled in, and no generator state has to be
    checkpointed. Philox: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        seed: 0 to 2^64 - 1.
        streams: [B] one number per sequence, 0 to 2^64 - 1.
        length: numbers per sequence.

    Returns:
        [B, length] float32 in [0, 1).
    """
    rows = [
        np.random.Generator(np.random.Philox(key=(seed << 64) | stream)).random(
            length, dtype=np.float32
        )
        for stream in streams
    ]
    return torch.from_numpy(np.stack(rows))


def sample_tokens(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the distribution function.

        p = softmax(logits),   token = min {v: p_0 + ... + p_v > u}

    The log-probability comes from the same sums as the choice, so it is the probability with which
    the token was really drawn. A token of probability 0 is never drawn.

    On a GPU the sums are of whole numbers: sums of floats depend there on the order in which the
    hardware happens to add, and torch refuses them where results must repeat.

    Args:
        logits: [B, V], already divided by the temperature.
        uniforms: [B] float32 in [0, 1).

    Returns:
        [B] int64 tokens and [B] float32 log-probabilities, nats; NaN for a row of logits that hold
        NaN or infinity.
    """
    logits = logits.float()
    shifted = logits - logits.amax(dim=1, keepdim=True)
    invert = _invert_whole if logits.is_cuda else _invert_float
    tokens, total = invert(shifted.exp(), uniforms[:, None])
    tokens = tokens.clamp_max(logits.shape[1] - 1)  # past the end where the sums are NaN
    logprobs = shifted.gather(1, tokens) - total.log()
    return tokens.squeeze(1), logprobs.squeeze(1)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Leave the most probable tokens whose probabilities together reach ``top_p``.

    Holtzman et al. (2020), "The curious case of neural text degeneration", equation 2: the smallest
    set of tokens, the most probable first, whose sum is at least ``top_p``.

    Args:
        logits: [B, V], already divided by the temperature.
        top_p: above 0; 1 leaves every token as it is.

    Returns:
        [B, V], minus infinity outside the set.
    """
    if top_p >= 1.0:
        return logits
    ordered, order = logits.float().sort(dim=1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=1)
    before = probabilities.cumsum(dim=1) - probabilities
    out = before >= top_p
    out[:, 0] = False
    return logits.masked_fill(out.scatter(1, order, out), float("-inf"))


def _invert_float(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Drawn tokens [B, 1], and sums of the weights [B, 1]."""
    cumulative = weights.cumsum(dim=1)
    total = cumulative[:, -1:]
    # Rounding may lift u * total to total, beyond every token.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    thresholds = torch.minimum(uniforms * total, below_total)
    return torch.searchsorted(cumulative, thresholds, right=True), total


def _invert_whole(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same with weights in units of 2^-40, whose sums are exact in any order."""
    cumulative = (weights * UNITS).long().cumsum(dim=1)
    total = cumulative[:, -1:].double()
    # The product stays below the total: u is at most 1 - 2^-24, and a double holds the sum.
    thresholds = (uniforms.double() * total).long()
    return torch.searchsorted(cumulative, thresholds, right=True), (total / UNITS).float()


def greedy_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable token of each row, the first of equals.

    Args:
        logits: [B, V].

    Returns:
        [B] int64 tokens and [B] float32 log-probabilities under softmax(logits), nats.
    """
    logits = logits.float()
    tokens = logits.argmax(dim=1)
    logprobs = logits.gather(1, tokens[:, None]) - logits.logsumexp(dim=1, keepdim=True)
    return tokens, logprobs.squeeze(1)
