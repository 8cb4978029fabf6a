"""The decode loop: prompts in, one token per live row and step, finished rows leave."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_core.errors import DataError, DivergedError, ModelError
from rlhf_core.models.causal import logit_transform, output_head
from rlhf_core.models.compute import unwrapped
from rlhf_core.models.last_layer import READ
from rlhf_core.models.layout import (
    OwnCache,
    by_length,
    cache_argument,
    hidden_states,
    layout_of,
)
from rlhf_core.models.sharding import before_pass, wait_in_step, without_gradients
from rlhf_core.models.text import num_positions, text_config, text_trunk
from rlhf_core.rollout.attention import decode_attention, decoding
from rlhf_core.rollout.kv_block import KvBlock
from rlhf_core.rollout.sampling import greedy_tokens, nucleus, sample_tokens
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
    top_p: float = 1.0
    """Draw among the most probable tokens that together have this probability; 1: among all."""


@dataclass(frozen=True, eq=False)
class Step:
    """One token of every row that is still being answered."""

    rows: Tensor
    """[B] int64, which of the rows these are."""
    tokens: Tensor
    """[B] int64"""
    logprobs: Tensor
    """[B] float32, nats."""
    values: Tensor | None
    """[B] float32, value before each token; None without a value head."""
    ended: Tensor
    """[B] bool on the CPU, True where the token is an EOS. Whoever reads the step may set more of
    them: those rows are answered no further."""


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
    with without_gradients(model):
        decoded = _decode(model, prompts, uniforms, sampling, budget)
        # Other processes may have longer answers, which need this one's part of the layers.
        wait_in_step(model, partial(_idle_pass, model))
    return decoded


def _decode(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    uniforms: Tensor,
    sampling: Sampling,
    budget: int,
) -> Decoded:
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = uniforms.shape[1]
    _require_room(model, lengths, width)
    out = _empty(len(prompts), width, unwrapped(model).device)
    everyone = list(range(len(prompts)))
    packed = layout_of(model).in_block
    # Packed prompts of any length go side by side; a model's own cache takes one length at a time.
    for alike in [everyone] if packed else by_length(everyone, lengths.tolist()):
        for turn in _turns(alike, lengths.tolist(), width, budget):
            rows, own = torch.tensor(turn), [prompts[row] for row in turn]
            if packed:
                block = KvBlock(text_config(model), lengths[rows], width)
                with decode_attention(model):
                    _decode_together(
                        _PackedReader(model, own, block), rows, uniforms, sampling, out
                    )
            else:
                with decoding(model):
                    _decode_together(_OwnReader(model, own), rows, uniforms, sampling, out)
    return out


def _idle_pass(model: nn.Module) -> None:
    with decoding(model):
        hidden_states(model, pack_prompts([]).to(unwrapped(model).device))


def _turns(rows: Sequence[int], lengths: Sequence[int], width: int, budget: int) -> list[list[int]]:
    """Cut rows into runs, one row at least, whose keys and values stay within ``budget``."""
    turns: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if not turns or (len(turns[-1]) + 1) * (longest + width) > budget:
            turns.append([])
            longest = lengths[row]
        turns[-1].append(row)
    return turns


def _decode_together(
    reader: "_PackedReader | _OwnReader",
    rows: Tensor,
    uniforms: Tensor,
    sampling: Sampling,
    out: Decoded,
) -> None:
    """Answer the prompts of ``rows``, which ``reader`` has, into their rows of ``out``."""
    for number, step in enumerate(_steps(reader, rows, uniforms, sampling)):
        if step.values is not None:
            out.values[step.rows, number] = step.values
        out.tokens[step.rows, number], out.logprobs[step.rows, number] = step.tokens, step.logprobs
        out.lengths[step.rows] += 1
        out.finished[step.rows[step.ended]] = True


def _steps(
    reader: "_PackedReader | _OwnReader", rows: Tensor, uniforms: Tensor, sampling: Sampling
) -> Iterator[Step]:
    """Draw a token of every row until all have ended or the random numbers are used up."""
    model, width = reader.model, uniforms.shape[1]
    device = unwrapped(model).device
    uniforms, eos = uniforms.to(device), torch.tensor(list(sampling.eos_ids), device=device)
    hidden = reader.read_prompts()
    for number in range(width):
        values = None if sampling.value_head is None else sampling.value_head(hidden)
        logits = _logits(model, hidden, sampling.temperature)
        tokens, logprobs = _choose(logits, uniforms[rows, number], sampling)
        if not bool(torch.isfinite(logprobs).all()):
            raise DivergedError(f"sampling token {number + 1}: the model's logits are not finite")
        ended = torch.isin(tokens, eos).cpu()
        yield Step(rows, tokens, logprobs, values, ended)
        if ended.any():  # a reader may go on without rows that have ended
            order = reader.keep_rows((~ended).nonzero().squeeze(1))
            rows, tokens = rows[order], tokens[order.to(device)]
        if len(rows) == 0 or number + 1 == width:
            break
        hidden = reader.read_tokens(tokens)


@contextmanager
def ready_to_decode(model: nn.Module) -> Iterator[None]:
    """Make ``model`` ready for ``decode_steps`` inside the block, in this thread."""
    make_ready = decode_attention if layout_of(model).in_block else decoding
    with torch.inference_mode(), make_ready(model):
        yield


def decode_steps(
    model: nn.Module, prompt: TokenIds, *, uniforms: Tensor, sampling: Sampling
) -> Iterator[Step]:
    """Answer one prompt as many times as there are rows of random numbers, a token at a time.

    Several such answers may take turns within one block of ``ready_to_decode``; each draws the
    tokens that ``decode`` draws.

    Args:
        model: causal model, within ``ready_to_decode``.
        prompt: at least one token.
        uniforms: [B, T] float32 in [0, 1), one per token to draw; T bounds the responses.
        sampling: how each token is chosen.

    Raises:
        DataError: the prompt is empty.
        DivergedError: a logit is not finite.
        ModelError: prompt plus response would not fit the model's positions.
    """
    prompts, width = [prompt] * len(uniforms), uniforms.shape[1]
    lengths = torch.tensor([len(prompt)] * len(uniforms))
    _require_room(model, lengths, width)
    if layout_of(model).in_block:
        block = KvBlock(text_config(model), lengths, width)
        reader: _PackedReader | _OwnReader = _PackedReader(model, prompts, block)
    else:
        reader = _OwnReader(model, prompts)
    yield from _steps(reader, torch.arange(len(uniforms)), uniforms, sampling)


def _empty(num_rows: int, width: int, device: torch.device) -> Decoded:
    return Decoded(
        tokens=torch.zeros(num_rows, width, dtype=torch.int64, device=device),
        logprobs=torch.zeros(num_rows, width, device=device),
        lengths=torch.zeros(num_rows, dtype=torch.int64, device=device),
        finished=torch.zeros(num_rows, dtype=torch.bool, device=device),
        values=torch.zeros(num_rows, width, device=device),
    )


class _PackedReader:
    """Reads packed prompts, then one token per live row, into a block that rows can leave."""

    def __init__(self, model: nn.Module, prompts: Sequence[TokenIds], block: KvBlock) -> None:
        self.model, self.prompts, self.block = model, prompts, block
        self.trunk = text_trunk(model)
        self.cache = {cache_argument(self.trunk): block}
        self.keep_rows = block.keep_rows

    def read_prompts(self) -> Tensor:
        """Hidden state of each row's last prompt token: [B, H]. A repeated prompt is read once."""
        keys = [prompt.tobytes() for prompt in self.prompts]
        distinct = dict(zip(keys, self.prompts, strict=True))
        number = {key: index for index, key in enumerate(distinct)}
        source = torch.tensor([number[key] for key in keys])
        device = unwrapped(self.model).device
        batch = pack_prompts(list(distinct.values())).to(device)
        self.block.begin_prompts(batch.cu_seqlens[source], device)
        hidden = self._states(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            attention_mask=batch.input_ids.new_empty((1, 1, 1, 0), dtype=torch.bool),
            cu_seqlens=batch.cu_seqlens,
            parents=batch.parents,
            **{READ: batch.last_positions},
        )[0]
        self.block.begin_decoding()
        return hidden[batch.last_positions[source.to(device)]]

    def read_tokens(self, tokens: Tensor) -> Tensor:
        """Hidden state of the next token of every live row: [B, H]."""
        hidden = self._states(
            input_ids=tokens[:, None],
            position_ids=self.block.next_positions().to(tokens.device),
            attention_mask=self.block.mask(),
        )[:, 0]
        self.block.advance()
        return hidden

    def _states(self, **inputs: Any) -> Tensor:
        before_pass(self.model)
        states: Tensor = self.trunk(**inputs, **self.cache, use_cache=True).last_hidden_state
        return states


class _OwnReader:
    """Reads prompts of one length with the model's own cache; rows that end are read on, unseen."""

    def __init__(self, model: nn.Module, prompts: Sequence[TokenIds]) -> None:
        self.model, self.prompts = model, prompts
        self.cache = OwnCache(model, cached=layout_of(model).cached)
        self.live = torch.arange(len(prompts))
        self.last: Tensor

    def read_prompts(self) -> Tensor:
        """Hidden state of each row's last prompt token: [B, H]."""
        tokens = torch.from_numpy(np.stack(self.prompts)).long().to(unwrapped(self.model).device)
        self.last = tokens[:, -1].clone()
        return self.cache.read(tokens)

    def keep_rows(self, kept: Tensor) -> Tensor:
        """Go on with live rows ``kept`` [K] alone."""
        self.live = self.live[kept]
        return kept

    def read_tokens(self, tokens: Tensor) -> Tensor:
        """Hidden state of the next token of every live row: [B, H]."""
        live = self.live.to(tokens.device)
        self.last[live] = tokens
        return self.cache.read(self.last[:, None])[live]


def _logits(model: nn.Module, hidden: Tensor, temperature: float) -> Tensor:
    weight, bias = output_head(model)
    raw: Tensor = F.linear(hidden, weight, bias)
    return logit_transform(model, temperature or 1.0).forward(raw)


def _choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if not sampling.temperature:
        return greedy_tokens(logits)
    return sample_tokens(nucleus(logits, sampling.top_p), uniforms)


def _require_room(model: nn.Module, lengths: Tensor, max_new_tokens: int) -> None:
    if int(lengths.min()) == 0:
        raise DataError(f"prompt {int(lengths.argmin())} of the batch has no tokens")
    limit = num_positions(text_config(model))
    needed = int(lengths.max()) + max_new_tokens
    if limit is not None and needed > limit:
        raise ModelError(
            f"a prompt of {int(lengths.max())} tokens and {max_new_tokens} new ones need {needed} "
            f"positions; the model has {limit}"
        )
