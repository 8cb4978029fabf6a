"""Causal language models on packed batches; the transformers model stays the public object."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.errors import ModelError
from rlhf_core.functional.head import (
    LossOfTokens,
    TokenLosses,
    chunked_logprobs,
    chunked_losses,
    chunked_nll_sum,
)
from rlhf_core.functional.logits import LogitTransform
from rlhf_core.models.compute import forward_precision, unwrapped
from rlhf_core.models.known_ids import ids_without_token, num_known_ids
from rlhf_core.models.layout import hidden_states
from rlhf_core.models.text import text_config
from rlhf_core.tokenization.batches import TokenBatch


def token_logprobs(model: nn.Module, batch: TokenBatch, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of every token that counts: [M] float32, in nats, differentiable."""
    hidden = hidden_states(model, batch, batch.predictor_positions)
    return logprobs_from_hidden(model, hidden, batch, temperature)


def logprobs_from_hidden(
    model: nn.Module, hidden: Tensor, batch: TokenBatch, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities [M], differentiable, from hidden states [M, H].

    The hidden states are those at ``batch.predictor_positions``. The result is float32, in nats, of
    the distribution at ``temperature``.
    """
    weight, bias = output_head(model)
    transform = logit_transform(model, temperature)
    with forward_precision(model):
        return chunked_logprobs(hidden, weight, bias, batch.targets, transform)


def losses_from_hidden(
    model: nn.Module,
    hidden: Tensor,
    batch: TokenBatch,
    loss_of: LossOfTokens,
    temperature: float = 1.0,
) -> TokenLosses:
    """Losses of the tokens that count, each a function of its own log-probability.

    Arguments as ``logprobs_from_hidden``, ``loss_of`` as in ``chunked_losses``.
    """
    weight, bias = output_head(model)
    transform = logit_transform(model, temperature)
    with forward_precision(model):
        return chunked_losses(hidden, weight, bias, batch.targets, loss_of, transform)


def nll_sum(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Negative log-likelihood summed over the tokens that count: [] float32, in nats."""
    read = hidden_states(model, batch, batch.predictor_positions)
    weight, bias = output_head(model)
    with forward_precision(model):
        return chunked_nll_sum(read, weight, bias, batch.targets, logit_transform(model))


def output_head(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias [V] (or None) of the language-model head, for the V known ids."""
    head = unwrapped(model).get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"the language-model head is a {type(head).__name__}; expected a plain linear layer "
            "(adapters on the head are not supported)"
        )
    known = num_known_ids(model)
    if known is None or known >= len(head.weight):
        return head.weight, head.bias
    return head.weight[:known], None if head.bias is None else head.bias[:known]


def logit_transform(model: nn.Module, temperature: float = 1.0) -> LogitTransform:
    """What the architecture does to its logits, by its configuration; ids without a token go."""
    config = text_config(model)
    scale = math.prod(_number(config, name) for name in _MULTIPLIERS)
    # HyperCLOVA X multiplies by what the Granite family divides by under the same name.
    multiplies = config.model_type.startswith("hyperclovax")
    scale *= _number(config, "logits_scaling") ** (1 if multiplies else -1)
    gaps = ids_without_token(model)
    caps = (getattr(config, name, None) for name in _SOFTCAPS)
    return LogitTransform(
        scale=scale,
        softcap=next((cap for cap in caps if cap is not None), None),
        temperature=temperature,
        left_out=torch.tensor(gaps, device=unwrapped(model).device) if gaps else None,
    )


_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def _number(config: Any, name: str) -> float:
    return float(getattr(config, name, None) or 1.0)
