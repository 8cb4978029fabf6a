"""The decode loop: packed prompts in, one token per live row and step, finished rows leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_core.errors import DataError, DivergedError, ModelError
from rlhf_core.models.causal import logit_transform, output_head
from rlhf_core.models.compute import unwrapped
from rlhf_core.models.unread import READ
from rlhf_core.rollout.attention import decode_attention
from rlhf_core.rollout.kv_block import KvBlock
from rlhf_core.rollout.sampling import greedy_tokens, sample_tokens
from rlhf_core.tokenization import TokenIds, pack_prompts


@dataclass(frozen=True, eq=False)
class Decoded:
    """Responses as columns; what lies after a response's length means nothing."""

    tokens: Tensor
    """[B, T] int64; a finished response ends with EOS."""
    logprobs: Tensor
    """[B, T] float32, log-probability with which each token was drawn, nats."""
    lengths: Tensor
    """[B] int64, 1 to T."""
    finished: Tensor
    """[B] bool, True where the response ended with EOS."""
    values: Tensor
    """[B, T] float32, value before each token; 0 without a value head."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """How each token is chosen."""

    temperature: float
    """Divides the logits; 0 takes the most probable token and reports its log-probability at
    temperature 1."""
    eos_ids: Sequence[int]
    """Any of these ends a response."""
    value_head: Callable[[Tensor], Tensor] | None = None
    """Values [B] of hidden states [B, H], read on the way where a value model shares the policy's
    trunk."""


@torch.inference_mode()
def decode(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    *,
    uniforms: Tensor,
    sampling: Sampling,
    budget: int,
) -> Decoded:
    """Sample one response per prompt.

    Args:
        model: causal model; its own attention is put back afterwards.
        prompts: [B] token sequences, each at least one token.
        uniforms: [B, T] float32 in [0, 1), one per token to draw; T bounds the responses.
        sampling: how each token is chosen.
        budget: tokens that keys and values are kept for at once: rows times the longest prompt
            and T. More rows take turns, which changes nothing but rounding.

    Raises:
        DataError: a prompt is empty.
        DivergedError: a logit is not finite.
        ModelError: prompt plus response would not fit the model's positions.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = uniforms.shape[1]
    _require_room(model, lengths, width)
    turns = _turns(lengths.tolist(), width, budget)
    parts = [
        _decode_together(model, prompts[turn], lengths[turn], uniforms[turn], sampling)
        for turn in turns
    ]
    names = [field.name for field in fields(Decoded)]
    return Decoded(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _turns(lengths: Sequence[int], width: int, budget: int) -> list[slice]:
    """Cut rows into runs, one row at least, whose keys and values stay within ``budget``."""
    turns: list[slice] = []
    start, longest = 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > start and (row + 1 - start) * (longest + width) > budget:
            turns.append(slice(start, row))
            start, longest = row, length
    return [*turns, slice(start, len(lengths))]


def _decode_together(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    lengths: Tensor,
    uniforms: Tensor,
    sampling: Sampling,
) -> Decoded:
    device, width = unwrapped(model).device, uniforms.shape[1]
    uniforms, eos = uniforms.to(device), torch.tensor(list(sampling.eos_ids), device=device)
    out = _empty(len(prompts), width, device)
    rows = torch.arange(len(prompts))
    block = KvBlock(unwrapped(model).config, lengths, width)
    with decode_attention(model):
        hidden = _read_prompts(model, prompts, block)
        for step in range(width):
            if sampling.value_head is not None:
                out.values[rows, step] = sampling.value_head(hidden)
            logits = _logits(model, hidden, sampling.temperature)
            tokens, logprobs = _choose(logits, uniforms[rows, step], sampling.temperature)
            if not bool(torch.isfinite(logprobs).all()):
                raise DivergedError(f"sampling token {step + 1}: the model's logits are not finite")
            out.tokens[rows, step], out.logprobs[rows, step] = tokens, logprobs
            out.lengths[rows] += 1
            ended = torch.isin(tokens, eos).cpu()
            if ended.any():
                out.finished[rows[ended]] = True
                order = block.keep_rows((~ended).nonzero().squeeze(1))
                rows, tokens = rows[order], tokens[order.to(device)]
            if len(rows) == 0 or step + 1 == width:
                break
            hidden = _read_tokens(model, tokens, block)
    return out


def _empty(num_rows: int, width: int, device: torch.device) -> Decoded:
    return Decoded(
        tokens=torch.zeros(num_rows, width, dtype=torch.int64, device=device),
        logprobs=torch.zeros(num_rows, width, device=device),
        lengths=torch.zeros(num_rows, dtype=torch.int64, device=device),
        finished=torch.zeros(num_rows, dtype=torch.bool, device=device),
        values=torch.zeros(num_rows, width, device=device),
    )


def _read_prompts(model: nn.Module, prompts: Sequence[TokenIds], block: KvBlock) -> Tensor:
    """Hidden state of each row's last prompt token: [B, H]. A repeated prompt is read once."""
    keys = [prompt.tobytes() for prompt in prompts]
    distinct = dict(zip(keys, prompts, strict=True))
    number = {key: index for index, key in enumerate(distinct)}
    source = torch.tensor([number[key] for key in keys])
    device = unwrapped(model).device
    batch = pack_prompts(list(distinct.values())).to(device)
    block.begin_prompts(batch.cu_seqlens[source], device)
    hidden = (
        unwrapped(model)
        .base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            attention_mask=batch.input_ids.new_empty((1, 1, 1, 0), dtype=torch.bool),
            past_key_values=block,
            use_cache=True,
            cu_seqlens=batch.cu_seqlens,
            parents=batch.parents,
            **{READ: batch.last_positions},
        )
        .last_hidden_state[0]
    )
    block.begin_decoding()
    last: Tensor = hidden[batch.last_positions[source.to(device)]]
    return last


def _read_tokens(model: nn.Module, tokens: Tensor, block: KvBlock) -> Tensor:
    hidden: Tensor = (
        unwrapped(model)
        .base_model(
            input_ids=tokens[:, None],
            position_ids=block.next_positions().to(tokens.device),
            attention_mask=block.mask(),
            past_key_values=block,
            use_cache=True,
        )
        .last_hidden_state[:, 0]
    )
    block.advance()
    return hidden


def _logits(model: nn.Module, hidden: Tensor, temperature: float) -> Tensor:
    weight, bias = output_head(model)
    raw: Tensor = F.linear(hidden, weight, bias)
    return logit_transform(model, temperature or 1.0).forward(raw)


def _choose(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return sample_tokens(logits, uniforms) if temperature else greedy_tokens(logits)


def _require_room(model: nn.Module, lengths: Tensor, max_new_tokens: int) -> None:
    if int(lengths.min()) == 0:
        raise DataError(f"prompt {int(lengths.argmin())} of the batch has no tokens")
    limit = getattr(unwrapped(model).config.get_text_config(), "max_position_embeddings", None)
    needed = int(lengths.max()) + max_new_tokens
    if limit is not None and needed > limit:
        raise ModelError(
            f"a prompt of {int(lengths.max())} tokens and {max_new_tokens} new ones need {needed} "
            f"positions; the model has {limit}"
        )
