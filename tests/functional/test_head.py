"""Chunked head: the numbers and gradients of the plain formula, without its memory."""

import math

import pytest
import torch
from torch import nn

from rlhf_core.errors import ShapeError
from rlhf_core.functional import head
from rlhf_core.functional.head import chunked_logprobs, chunked_losses, chunked_nll_sum
from rlhf_core.functional.logits import PLAIN, LogitTransform

TRANSFORMS = [
    PLAIN,
    LogitTransform(temperature=0.7),
    LogitTransform(scale=0.25),
    LogitTransform(softcap=2.0),
    LogitTransform(scale=1.5, softcap=3.0, temperature=1.3),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(head, "MIN_CHUNK_ROWS", 3)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 8)


def inputs(rows=10, width=6, vocabulary=11, bias=True):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        draw = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return draw.requires_grad_()

    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return (
        normal(rows, width),
        normal(vocabulary, width),
        normal(vocabulary) if bias else None,
        (targets),
    )


def by_definition(hidden, weight, bias, transform):
    """log softmax of temperature-scaled, capped, scaled logits, token by token."""
    logits = hidden @ weight.T + (0 if bias is None else bias)
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return nn.functional.log_softmax(logits / transform.temperature, dim=-1)


def twice_nll(logprobs, _):
    return -2 * logprobs


def test_two_tokens_by_hand():
    hidden, weight = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [math.log(3.0)]])
    logprobs = chunked_logprobs(hidden, weight, None, torch.tensor([1, 0]))
    assert logprobs.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 10)])
    seen = chunked_losses(hidden, weight, None, torch.tensor([1, 0]), twice_nll)
    assert seen.losses.tolist() == pytest.approx([-2 * math.log(3 / 4), -2 * math.log(1 / 10)])
    assert seen.total.item() == pytest.approx(-2 * math.log(3 / 4) - 2 * math.log(1 / 10))
    assert seen.logprobs.tolist() == logprobs.tolist()
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.25, 0.1)]
    assert seen.entropy.tolist() == pytest.approx(entropies)
    nll = chunked_nll_sum(hidden, weight, None, torch.tensor([1, 0]))
    assert nll.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 10))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_match_the_definition(transform, bias):
    hidden, weight, offset, targets = inputs(bias=bias)
    leaves = [tensor for tensor in (hidden, weight, offset) if tensor is not None]
    upstream = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    expected = by_definition(hidden, weight, offset, transform)
    picked = expected.gather(1, targets[:, None]).squeeze(1)
    logprobs = chunked_logprobs(hidden, weight, offset, targets, transform)
    torch.testing.assert_close(logprobs, picked)
    wanted = torch.autograd.grad((picked * upstream).sum(), leaves, retain_graph=True)
    got = torch.autograd.grad((logprobs * upstream).sum(), leaves)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    wanted = torch.autograd.grad(-2.5 * picked.sum(), leaves)
    nll = chunked_nll_sum(hidden, weight, offset, targets, transform)
    got = torch.autograd.grad(2.5 * nll, leaves)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_losses_of_single_tokens_match_the_definition(transform):
    hidden, weight, offset, targets = inputs()
    old = torch.linspace(-4, 0, len(targets), dtype=torch.float64)

    def loss_of(logprobs, part):
        return torch.maximum(torch.exp(logprobs - old[part]), logprobs.square())

    expected = by_definition(hidden, weight, offset, transform)
    picked = expected.gather(1, targets[:, None]).squeeze(1)
    wanted = loss_of(picked, slice(None))
    seen = chunked_losses(hidden, weight, offset, targets, loss_of, transform)
    for one, other in (
        (seen.total, wanted.sum()),
        (seen.losses, wanted),
        (seen.logprobs, picked),
        (seen.entropy, -(expected.exp() * expected).sum(1)),
    ):
        torch.testing.assert_close(one, other)
    assert not any(part.requires_grad for part in seen[1:])
    leaves = [hidden, weight, offset]
    gradients = torch.autograd.grad(3 * wanted.sum(), leaves)
    for one, other in zip(torch.autograd.grad(3 * seen.total, leaves), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, targets = inputs(bias=False)
    frozen = weight.detach()
    for loss in (
        chunked_nll_sum(hidden, frozen, None, targets),
        chunked_logprobs(hidden, frozen, None, targets).sum(),
        chunked_losses(hidden, frozen, None, targets, twice_nll).total,
    ):
        (grad,) = torch.autograd.grad(loss, [hidden])
        assert grad.isfinite().all()


def test_chunk_size_does_not_change_the_answer(monkeypatch):
    hidden, weight, bias, targets = inputs()
    small = chunked_logprobs(hidden, weight, bias, targets)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 1 << 20)
    torch.testing.assert_close(chunked_logprobs(hidden, weight, bias, targets), small)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    targets = torch.tensor([0, 0])
    logprobs = chunked_logprobs(hidden, weight, None, targets)
    assert logprobs.tolist() == pytest.approx([0.0, -2e4])
    seen = chunked_losses(hidden, weight, None, targets, twice_nll)
    assert seen.entropy.tolist() == pytest.approx([0.0, 0.0])
    logprobs.sum().backward()
    assert hidden.grad.isfinite().all()


def test_no_tokens_give_no_loss():
    hidden, weight, _, _ = inputs(bias=False)
    empty = torch.empty(0, dtype=torch.long)
    assert chunked_nll_sum(hidden[:0], weight, None, empty).item() == 0.0
    assert chunked_logprobs(hidden[:0], weight, None, empty).shape == (0,)
    assert chunked_losses(hidden[:0], weight, None, empty, twice_nll).total.item() == 0.0


def test_shapes_are_refused():
    hidden, weight, _, targets = inputs(bias=False)
    for function in (chunked_logprobs, chunked_nll_sum):
        with pytest.raises(ShapeError, match="one target per row"):
            function(hidden, weight, None, targets[:-1])
        with pytest.raises(ShapeError, match="hidden"):
            function(hidden[:, :-1], weight, None, targets)


def test_products_run_in_autocasts_precision():
    hidden, weight, _, targets = (None if x is None else x.detach() for x in inputs(bias=False))
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    exact = chunked_nll_sum(hidden, weight, None, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = chunked_nll_sum(hidden, weight, None, targets)
        logprobs = chunked_logprobs(hidden, weight, None, targets)
    assert rounded.dtype == logprobs.dtype == torch.float32
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    (-logprobs.sum()).backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
