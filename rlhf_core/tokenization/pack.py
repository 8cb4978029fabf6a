"""Tokenized records to packed batches; of nothing, a batch of one token that nobody reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rlhf_core.tokenization.batches import NO_PARENT, PreferenceBatch, TokenBatch
from rlhf_core.tokenization.examples import TokenIds, TokenizedExample, TokenizedPair


@dataclass
class _Packer:
    """Grows the columns of a ``TokenBatch``, one segment at a time."""

    ids: list[TokenIds] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def add(self, ids: TokenIds, mask: np.ndarray, parent: int = NO_PARENT) -> int:
        """Append a segment and return its index."""
        start = 0 if parent == NO_PARENT else self.lengths[parent]
        self.ids.append(ids)
        self.positions.append(np.arange(start, start + len(ids)))
        self.masks.append(mask)
        self.lengths.append(len(ids))
        self.parents.append(parent)
        return len(self.lengths) - 1

    def batch(self) -> TokenBatch:
        if not self.ids:  # a process without rows passes through the model as often as the others
            self.add(np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.bool_))
        return TokenBatch(
            input_ids=torch.from_numpy(np.concatenate(self.ids).astype(np.int64)),
            position_ids=torch.from_numpy(np.concatenate(self.positions)),
            loss_mask=torch.from_numpy(np.concatenate(self.masks)),
            cu_seqlens=torch.tensor([0, *np.cumsum(self.lengths)]),
            parents=torch.tensor(self.parents),
        )


def pack_responses(prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> TokenBatch:
    """Pack prompt i with response i; every response token counts in the loss."""
    packer = _Packer()
    for prompt, response in zip(prompts, responses, strict=True):
        packer.add(np.concatenate([prompt, response]), _response_mask(prompt, response))
    return packer.batch()


def pack_prompts(prompts: Sequence[TokenIds]) -> TokenBatch:
    """Pack prompts alone; nothing counts in a loss."""
    packer = _Packer()
    for prompt in prompts:
        packer.add(prompt, np.zeros(len(prompt), dtype=np.bool_))
    return packer.batch()


def pack_grouped_responses(
    prompts: Sequence[TokenIds], responses: Sequence[Sequence[TokenIds]]
) -> TokenBatch:
    """Pack every response of ``responses[i]`` after prompt i, the prompt computed once.

    Sequences are numbered in order: the responses of the first prompt, then of the second.
    """
    packer = _Packer()
    for prompt, group in zip(prompts, responses, strict=True):
        _add_group(packer, prompt, group)
    return packer.batch()


def pack_examples(examples: Sequence[TokenizedExample]) -> TokenBatch:
    """Pack demonstrations; responses count, and earlier turns where an example says so."""
    packer = _Packer()
    for example in examples:
        mask = _response_mask(example.prompt_ids, example.response_ids)
        if example.prompt_mask is not None:
            mask[: len(example.prompt_ids)] = example.prompt_mask
        packer.add(np.concatenate([example.prompt_ids, example.response_ids]), mask)
    return packer.batch()


def pack_pairs(pairs: Sequence[TokenizedPair], *, share: bool = True) -> PreferenceBatch:
    """Pack preference pairs.

    Args:
        pairs: pairs of one prompt in a row share that prompt; equal responses of it are computed
            once (the pairs of a ranked list share theirs).
        share: False computes every prompt and response of every pair by itself. The scores are
            the same to rounding.
    """
    packer = _Packer()
    chosen: list[int] = []
    rejected: list[int] = []
    sequence = 0
    for group in group_by_prompt(pairs) if share else [[pair] for pair in pairs]:
        responses: dict[bytes, int] = {}
        order: list[TokenIds] = []
        for pair in group:
            for ids, column in ((pair.chosen_ids, chosen), (pair.rejected_ids, rejected)):
                key = ids.tobytes()
                if key not in responses:
                    responses[key] = sequence + len(order)
                    order.append(ids)
                column.append(responses[key])
        sequence += len(order)
        if share:
            _add_group(packer, group[0].prompt_ids, order)
        else:
            _add_apart(packer, group[0].prompt_ids, order)
    return PreferenceBatch(
        tokens=packer.batch(),
        chosen=torch.tensor(chosen, dtype=torch.int64),
        rejected=torch.tensor(rejected, dtype=torch.int64),
        probability=torch.tensor([pair.probability for pair in pairs], dtype=torch.float32),
        margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
    )


def group_by_prompt(pairs: Sequence[TokenizedPair]) -> list[list[TokenizedPair]]:
    """Split ``pairs`` into runs of neighbours with the same prompt tokens."""
    groups: list[list[TokenizedPair]] = []
    for pair in pairs:
        if groups and np.array_equal(groups[-1][0].prompt_ids, pair.prompt_ids):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def _add_group(packer: _Packer, prompt: TokenIds, responses: Sequence[TokenIds]) -> None:
    if len(responses) == 1:
        _add_apart(packer, prompt, responses)
        return
    parent = packer.add(prompt, np.zeros(len(prompt), dtype=np.bool_))
    for response in responses:
        packer.add(response, np.ones(len(response), dtype=np.bool_), parent)


def _add_apart(packer: _Packer, prompt: TokenIds, responses: Sequence[TokenIds]) -> None:
    for response in responses:
        packer.add(np.concatenate([prompt, response]), _response_mask(prompt, response))


def _response_mask(prompt: TokenIds, response: TokenIds) -> np.ndarray:
    mask = np.ones(len(prompt) + len(response), dtype=np.bool_)
    mask[: len(prompt)] = False
    return mask
