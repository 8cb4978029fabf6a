import pytest
import torch

from rlhf_core.errors import ShapeError
from rlhf_core.functional.whitening import masked_mean, masked_variance, whiten


def test_moments_by_hand():
    values = torch.tensor([[1.0, 3.0], [5.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert masked_mean(values, mask).item() == 3.0
    assert masked_variance(values, mask).item() == pytest.approx(8 / 3)


def test_moments_agree_with_torch_on_the_selected_values():
    values, mask = torch.randn(7, 9), torch.rand(7, 9) > 0.4
    torch.testing.assert_close(masked_variance(values, mask), values[mask].var(correction=0))


def test_whitened_values_have_mean_zero_and_variance_one():
    values, mask = torch.randn(16, 20) * 7 + 3, torch.rand(16, 20) > 0.3
    whitened = whiten(values, mask)
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert whitened[mask].var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(whitened[~mask], torch.zeros(int((~mask).sum())))


def test_whitening_is_blind_to_shift_and_scale_and_keeps_order():
    values, mask = torch.randn(4, 6, dtype=torch.float64), torch.ones(4, 6, dtype=torch.bool)
    torch.testing.assert_close(whiten(values * 5 + 2, mask), whiten(values, mask))
    assert torch.equal(whiten(values, mask).flatten().argsort(), values.flatten().argsort())


def test_padding_cannot_change_the_answer():
    values, mask = torch.randn(5, 6), torch.arange(6) < torch.tensor([[6], [1], [4], [2], [5]])
    dirty = torch.where(mask, values, torch.nan)
    assert torch.equal(whiten(values, mask), whiten(dirty, mask))


def test_equal_values_become_zero_and_not_nan():
    mask = torch.ones(3, 3, dtype=torch.bool)
    assert torch.equal(whiten(torch.full((3, 3), 4.0), mask), torch.zeros(3, 3))


def test_an_empty_mask_and_a_wrong_shape_are_refused():
    with pytest.raises(ShapeError, match="nothing"):
        whiten(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ShapeError, match="mask"):
        whiten(torch.zeros(2, 2), torch.ones(2, 1, dtype=torch.bool))
