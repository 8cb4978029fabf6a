import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.rollout import sampling
from rlhf_core.rollout.sampling import greedy_tokens, nucleus, sample_tokens, sequence_uniforms


def test_inverse_cdf_by_hand():
    # p = 1/2, 1/4, 1/4: cumulative 0.5, 0.75, 1
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).repeat(5, 1) + 3.0
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.0, 0.49, 0.51, 0.74, 0.9999]))
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    expected = torch.log(torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25]))
    torch.testing.assert_close(logprobs, expected)


def test_frequencies_follow_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    uniforms = (torch.arange(20_000) + 0.5) / 20_000
    tokens, _ = sample_tokens(logits.repeat(20_000, 1), uniforms)
    frequencies = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(frequencies, torch.softmax(logits, 0), atol=1e-4, rtol=0)


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=8), st.floats(0, 0.9999))
def test_logprob_is_that_of_the_drawn_token(values, uniform):
    logits = torch.tensor([values])
    tokens, logprobs = sample_tokens(logits, torch.tensor([uniform]))
    expected = torch.log_softmax(logits, 1)[0, tokens[0]]
    torch.testing.assert_close(logprobs[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-24])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    tokens, logprobs = sample_tokens(logits, torch.tensor([uniform]))
    assert tokens.item() in (1, 2)
    assert logprobs.item() == pytest.approx(-math.log(2))


def test_largest_uniform_stays_inside_a_large_vocabulary():
    logits = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    tokens, _ = sample_tokens(logits, torch.full((4,), 1.0 - 2**-24))
    assert (tokens < 50_000).all()


def test_inputs_are_left_alone():
    logits = torch.randn(2, 5)
    before = logits.clone()
    sample_tokens(logits, torch.tensor([0.1, 0.9]))
    greedy_tokens(logits)
    assert torch.equal(logits, before)


def test_greedy_takes_the_first_of_equals():
    tokens, logprobs = greedy_tokens(torch.tensor([[1.0, 2.0, 2.0]]))
    assert tokens.item() == 1
    assert logprobs.item() == pytest.approx(torch.log_softmax(torch.tensor([1.0, 2, 2]), 0)[1])


def test_streams_depend_on_seed_and_number_alone():
    together = sequence_uniforms(7, [0, 1, 2], 10)
    assert torch.equal(sequence_uniforms(7, [2], 10)[0], together[2])
    assert torch.equal(sequence_uniforms(7, [0, 1, 2], 25)[:, :10], together)
    assert not torch.equal(sequence_uniforms(8, [0, 1, 2], 10), together)


def test_streams_are_uniform_and_unrelated():
    numbers = sequence_uniforms(0, range(200), 200).double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.006)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.002)
    correlation = torch.corrcoef(numbers) - torch.eye(200)
    assert correlation.abs().max() < 0.4
    assert (
        torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1].abs()
        < 0.02
    )


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Draw with the sums that a GPU uses."""
    monkeypatch.setattr(sampling, "_invert_float", sampling._invert_whole)


def test_whole_sums_draw_what_float_sums_draw(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(2_000, 300, generator=generator)
    uniforms = torch.rand(2_000, generator=generator)
    expected = sample_tokens(logits, uniforms)
    monkeypatch.setattr(sampling, "_invert_float", sampling._invert_whole)
    tokens, logprobs = sample_tokens(logits, uniforms)
    same = tokens == expected[0]
    assert same.float().mean() > 0.995  # a uniform at the very edge may fall to a neighbour
    torch.testing.assert_close(logprobs[same], expected[1][same], atol=1e-5, rtol=1e-5)
    table = torch.log_softmax(logits, 1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, table, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-24])
def test_whole_sums_stay_among_tokens_that_can_be_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    tokens, logprobs = sample_tokens(logits, torch.tensor([uniform]))
    assert tokens.item() in (1, 2)
    assert logprobs.item() == pytest.approx(-math.log(2))
    flat = torch.zeros(1, 1 << 18)
    tokens, logprobs = sample_tokens(flat, torch.tensor([uniform]))
    assert tokens.item() == int(uniform * (1 << 18))
    assert logprobs.item() == pytest.approx(-18 * math.log(2))


def test_whole_sums_do_not_depend_on_the_order_of_addition():
    weights = torch.rand(1, 10_000, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(3))
    uniform = torch.tensor([[0.5]])
    one = sampling._invert_whole(weights, uniform)[1]
    assert torch.equal(one, sampling._invert_whole(weights[:, order], uniform)[1])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_not_numbers_give_a_logprob_that_is_none(broken):
    logits = torch.tensor([[0.0, broken, 1.0], [0.0, 0.0, 0.0]])
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.5, 0.5]))
    assert logprobs.isnan().tolist() == [True, False]
    assert tokens.max() < 3


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_the_nucleus_is_that_of_transformers(top_p):
    from transformers import TopPLogitsWarper

    logits = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)) * 3
    theirs = TopPLogitsWarper(top_p)(None, logits)
    assert torch.equal(nucleus(logits, top_p), theirs)


def test_the_whole_nucleus_is_every_token():
    logits = torch.randn(2, 5)
    assert nucleus(logits, 1.0) is logits
