"""Attention of all segments in one operation: the plain formula's numbers and gradients."""

import pytest
import torch

from rlhf_core.models.segment_op import segment_attention, units_of
from rlhf_core.tokenization.batches import NO_PARENT

LENGTHS = [3, 4, 2, 5, 1, 2]
PARENTS = [NO_PARENT, 0, 0, NO_PARENT, NO_PARENT, 3]
"""A prompt with two responses, a whole sequence with a response that comes later, one token."""


def layout():
    return [torch.tensor([0, *LENGTHS]).cumsum(0), torch.tensor(PARENTS)]


def visible(window):
    """[N, N] bool: key k is of the query's segment or its prompt, not after it, in its window."""
    segment = [index for index, length in enumerate(LENGTHS) for _ in range(length)]
    place = []
    for index, length in enumerate(LENGTHS):
        before = 0 if PARENTS[index] == NO_PARENT else LENGTHS[PARENTS[index]]
        place += [before + offset for offset in range(length)]
    mask = torch.zeros(len(segment), len(segment), dtype=torch.bool)
    for query in range(len(segment)):
        for key in range(len(segment)):
            own = segment[key] in (segment[query], PARENTS[segment[query]])
            distance = place[query] - place[key]
            mask[query, key] = own and distance >= 0 and (window is None or distance < window)
    return mask


def states(dtype=torch.float64, heads=2, width=4):
    generator = torch.Generator().manual_seed(0)
    shape = (1, sum(LENGTHS), heads, width)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_output_and_gradients_match_the_definition(window, scaling):
    query, key, value = states()
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    weights = scores.masked_fill(~visible(window), -torch.inf).softmax(-1)
    expected = (weights @ value).transpose(1, 2)
    output, _ = segment_attention(query, key, value, layout(), scaling, window)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * upstream).sum(), [query, key, value])
    got = torch.autograd.grad((output * upstream).sum(), [query, key, value])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_prompt_and_the_response_after_it_attend_in_one_call():
    assert [unit.length for unit in units_of(*layout())] == [7, 2, 5, 1, 2]


@pytest.mark.parametrize("window", [None, 3])
def test_the_compiler_is_told_the_truth(window):
    """Shapes, strides, aliases and gradients as registered are those of the real operation."""
    torch.library.opcheck(segment_attention, (*states(torch.float32), layout(), None, window))
