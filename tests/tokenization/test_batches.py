"""Packed batches: what each index points at, with and without shared prompts."""

import numpy as np
import pytest
import torch

from rlhf_core.errors import ShapeError
from rlhf_core.tokenization import (
    TokenBatch,
    TokenizedExample,
    TokenizedPair,
    group_by_prompt,
    pack_examples,
    pack_grouped_responses,
    pack_pairs,
    pack_prompts,
    pack_responses,
)


def ids(*tokens):
    return np.asarray(tokens, dtype=np.int32)


def test_sequences_lie_end_to_end():
    batch = pack_responses([ids(1, 5), ids(1, 6, 7)], [ids(8, 9, 2), ids(2)])
    assert batch.input_ids.tolist() == [1, 5, 8, 9, 2, 1, 6, 7, 2]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 5, 9]
    assert batch.loss_mask.tolist() == [False, False, True, True, True, False, False, False, True]
    assert batch.targets.tolist() == [8, 9, 2, 2]
    assert batch.predictor_positions.tolist() == [1, 2, 3, 7]
    assert batch.sequence_of_loss_token.tolist() == [0, 0, 0, 1]
    assert batch.last_positions.tolist() == [4, 8]
    assert batch.response_lengths.tolist() == [3, 1]
    assert (batch.num_tokens, batch.num_sequences, batch.num_loss_tokens) == (9, 2, 4)


def test_responses_of_a_shared_prompt_go_on_from_it():
    batch = pack_grouped_responses(
        [ids(1, 5), ids(1, 6, 7)], [[ids(8, 9, 2), ids(10, 2)], [ids(2)]]
    )
    assert batch.input_ids.tolist() == [1, 5, 8, 9, 2, 10, 2, 1, 6, 7, 2]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 2, 5, 7, 11]
    assert batch.parents.tolist() == [-1, 0, 0, -1]
    assert batch.leaves.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [8, 9, 2, 10, 2, 2]
    assert batch.predictor_positions.tolist() == [1, 2, 3, 1, 5, 9]
    assert batch.sequence_of_loss_token.tolist() == [0, 0, 0, 1, 1, 2]
    assert batch.last_positions.tolist() == [4, 6, 10]


def test_sums_follow_the_sequences():
    batch = pack_grouped_responses([ids(1, 5)], [[ids(8, 9, 2), ids(10, 2)]])
    values = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
    assert batch.sum_by_sequence(values).tolist() == [6.0, 30.0]


def test_prompts_alone_count_nothing():
    batch = pack_prompts([ids(1, 5), ids(1)])
    assert batch.num_loss_tokens == 0
    assert batch.last_positions.tolist() == [1, 2]


def test_examples_count_responses_and_marked_turns():
    plain = TokenizedExample("a", ids(1, 5, 6), ids(7, 2))
    marked = TokenizedExample("b", ids(1, 5, 6), ids(7, 2), np.array([False, True, False]))
    batch = pack_examples([plain, marked])
    assert batch.targets.tolist() == [7, 2, 5, 7, 2]
    assert batch.predictor_positions.tolist() == [2, 3, 5, 7, 8]


def pair(prompt, chosen, rejected, probability=1.0):
    return TokenizedPair("x", prompt, chosen, rejected, probability)


def test_a_ranked_list_computes_each_response_once():
    prompt, best, middle, worst = ids(1, 5), ids(8, 2), ids(9, 2), ids(10, 11, 2)
    pairs = [
        pair(prompt, best, middle),
        pair(prompt, middle, worst),
        pair(prompt, best, worst, 0.7),
    ]
    batch = pack_pairs(pairs)
    assert batch.tokens.input_ids.tolist() == [1, 5, 8, 2, 9, 2, 10, 11, 2]
    assert batch.chosen.tolist() == [0, 1, 0]
    assert batch.rejected.tolist() == [1, 2, 2]
    assert batch.probability.tolist() == pytest.approx([1.0, 1.0, 0.7])
    assert batch.num_pairs == 3
    apart = pack_pairs(pairs, share=False)
    assert apart.tokens.num_sequences == 6
    assert apart.tokens.input_ids[apart.tokens.last_positions].tolist() == [2] * 6


def test_equal_responses_are_one_sequence():
    batch = pack_pairs([pair(ids(1, 5), ids(8, 2), ids(8, 2))])
    assert batch.tokens.num_sequences == 1
    assert batch.chosen.tolist() == batch.rejected.tolist() == [0]


def test_only_neighbours_share_a_prompt():
    one, other = ids(1, 5), ids(1, 6)
    pairs = [pair(p, ids(8, 2), ids(9, 2)) for p in (one, one, other, one)]
    assert [len(group) for group in group_by_prompt(pairs)] == [2, 1, 1]


def test_a_first_token_cannot_be_predicted():
    example = TokenizedExample("a", ids(1, 5), ids(2), np.array([True, False]))
    with pytest.raises(ShapeError, match="first token"):
        _ = pack_examples([example]).predictor_positions


@pytest.mark.parametrize(
    "changes",
    [
        {"position_ids": torch.zeros(3, dtype=torch.long)},
        {"cu_seqlens": torch.tensor([0, 3])},
        {"parents": torch.tensor([-1, -1])},
    ],
)
def test_wrong_shapes_are_refused(changes):
    columns = {
        "input_ids": torch.arange(4),
        "position_ids": torch.arange(4),
        "loss_mask": torch.zeros(4, dtype=torch.bool),
        "cu_seqlens": torch.tensor([0, 4]),
        "parents": torch.tensor([-1]),
    }
    with pytest.raises(ShapeError):
        TokenBatch(**(columns | changes))
