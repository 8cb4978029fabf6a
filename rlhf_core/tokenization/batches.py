"""Padding-free batches: the sequences of a batch lie end to end, nothing is padded.

A batch is a row of *segments*. A segment is a whole sequence (prompt and response), or, where
several responses share a prompt, the prompt alone and each response as its own segment whose
``parent`` is the prompt: the prompt is then computed once and every response sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rlhf_core.errors import ShapeError

NO_PARENT = -1


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """N tokens of S segments; B of the segments are sequences (not the shared prompt of others)."""

    input_ids: Tensor
    """[N] int64."""
    position_ids: Tensor
    """[N] int64; from 0 in a sequence, after the prompt's in a response with a parent."""
    loss_mask: Tensor
    """[N] bool, True on the M tokens that count: response tokens, EOS among them."""
    cu_seqlens: Tensor
    """[S + 1] int64 on the CPU: segment s is tokens cu_seqlens[s] to cu_seqlens[s + 1]."""
    parents: Tensor
    """[S] int64 on the CPU: the segment that comes before this one in its sequence, or -1."""

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.input_ids, self.position_ids, self.loss_mask)}
        if len(shapes) != 1 or self.input_ids.dim() != 1:
            raise ShapeError(f"expected three tensors of one shape [N], got {sorted(shapes)}")
        if len(self.parents) + 1 != len(self.cu_seqlens):
            raise ShapeError(
                f"expected parents [S] and cu_seqlens [S + 1], got {len(self.parents)} and "
                f"{len(self.cu_seqlens)}"
            )
        if int(self.cu_seqlens[-1]) != len(self.input_ids):
            raise ShapeError(
                f"cu_seqlens ends at {int(self.cu_seqlens[-1])}, input_ids has "
                f"{len(self.input_ids)} tokens"
            )

    @property
    def num_tokens(self) -> int:
        """N, shared prompts counted once."""
        return len(self.input_ids)

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.leaves)

    @cached_property
    def num_loss_tokens(self) -> int:
        """M."""
        return int(self.loss_mask.sum())

    @cached_property
    def leaves(self) -> Tensor:
        """[B] int64 on the CPU: the segment that ends each sequence."""
        is_parent = torch.zeros(len(self.parents), dtype=torch.bool)
        is_parent[self.parents[self.parents != NO_PARENT]] = True
        return (~is_parent).nonzero().squeeze(1)

    @cached_property
    def last_positions(self) -> Tensor:
        """[B] int64: index into N of the last token of each sequence."""
        return (self.cu_seqlens[self.leaves + 1] - 1).to(self.input_ids.device)

    @cached_property
    def loss_positions(self) -> Tensor:
        """[M] int64: index into N of each token that counts."""
        return self.loss_mask.nonzero().squeeze(1)

    @cached_property
    def predictor_positions(self) -> Tensor:
        """[M] int64: index into N of the token whose hidden state predicts each counted token."""
        device = self.input_ids.device
        before_segment = torch.where(
            self.parents == NO_PARENT, NO_PARENT, self.cu_seqlens[self.parents + 1] - 1
        )
        previous = torch.arange(-1, self.num_tokens - 1, device=device)
        previous[self.cu_seqlens[:-1].to(device)] = before_segment.to(device)
        predictors = previous[self.loss_positions]
        if bool((predictors == NO_PARENT).any()):
            raise ShapeError(
                "the first token of a sequence counts in the loss; nothing predicts it"
            )
        return predictors

    @cached_property
    def targets(self) -> Tensor:
        """[M] int64: the tokens that count."""
        return self.input_ids[self.loss_positions]

    @cached_property
    def sequence_of_loss_token(self) -> Tensor:
        """[M] int64: which of the B sequences each counted token belongs to."""
        device = self.input_ids.device
        ends = self.cu_seqlens[1:].to(device)
        segment = torch.searchsorted(ends, self.loss_positions, right=True)
        rank = torch.full((len(self.parents),), NO_PARENT, dtype=torch.int64)
        rank[self.leaves] = torch.arange(len(self.leaves))
        return rank.to(device)[segment]

    @cached_property
    def response_lengths(self) -> Tensor:
        """[B] int64: counted tokens of each sequence."""
        return torch.bincount(self.sequence_of_loss_token, minlength=self.num_sequences)

    def sum_by_sequence(self, per_token: Tensor) -> Tensor:
        """Sum [M] values over each sequence: [B]."""
        zeros = per_token.new_zeros(self.num_sequences)
        return zeros.index_add(0, self.sequence_of_loss_token, per_token)

    def ended_by(self, end_id: int, end_ids: Sequence[int]) -> "TokenBatch":
        """Return the batch with ``end_id`` wherever a sequence ends in one of ``end_ids``."""
        last = self.input_ids[self.last_positions]
        ended = torch.isin(last, torch.as_tensor(end_ids, device=last.device))
        input_ids = self.input_ids.clone()
        input_ids[self.last_positions[ended]] = end_id
        return replace(self, input_ids=input_ids)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the batch with its token tensors on ``device``."""
        return TokenBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.loss_mask.to(device),
            self.cu_seqlens,
            self.parents,
        )


@dataclass(frozen=True, eq=False)
class PreferenceBatch:
    """Pairs over the sequences of one ``TokenBatch``; a sequence may take part in several."""

    tokens: TokenBatch
    chosen: Tensor
    """[P] int64: which of the B sequences won."""
    rejected: Tensor
    """[P] int64: which lost."""
    probability: Tensor
    """[P] float32: probability that ``chosen`` is truly better."""
    margin: Tensor
    """[P] float32: by how much the score of ``chosen`` should lie above the other, 0 mostly."""

    @property
    def num_pairs(self) -> int:
        """P."""
        return len(self.chosen)

    def to(self, device: torch.device | str) -> "PreferenceBatch":
        """Return the batch on ``device``."""
        return PreferenceBatch(
            self.tokens.to(device),
            self.chosen.to(device),
            self.rejected.to(device),
            self.probability.to(device),
            self.margin.to(device),
        )
