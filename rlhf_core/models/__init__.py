"""Causal and scalar models on packed batches, and their files."""

from rlhf_core.models.attention import PACKED, register_packed_attention
from rlhf_core.models.causal import (
    logit_transform,
    logprobs_from_hidden,
    losses_from_hidden,
    nll_sum,
    output_head,
    token_logprobs,
)
from rlhf_core.models.compute import adapters_off, finish_training, prepare_training, unwrapped
from rlhf_core.models.device import choose_device, device_of
from rlhf_core.models.files import save_model, weights_sha256
from rlhf_core.models.layout import hidden_states
from rlhf_core.models.load import load_causal
from rlhf_core.models.scalar import (
    fresh_value_head,
    load_scalar,
    reward_shift,
    scalar_from_causal,
    scores_from_hidden,
    sequence_scores,
    set_reward_shift,
    token_values,
    value_of_hidden,
)

__all__ = [
    "PACKED",
    "adapters_off",
    "choose_device",
    "device_of",
    "finish_training",
    "fresh_value_head",
    "hidden_states",
    "load_causal",
    "load_scalar",
    "logit_transform",
    "logprobs_from_hidden",
    "losses_from_hidden",
    "nll_sum",
    "output_head",
    "prepare_training",
    "register_packed_attention",
    "reward_shift",
    "save_model",
    "scalar_from_causal",
    "scores_from_hidden",
    "sequence_scores",
    "set_reward_shift",
    "token_logprobs",
    "token_values",
    "unwrapped",
    "value_of_hidden",
    "weights_sha256",
]
