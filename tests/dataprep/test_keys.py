"""Texts that read the same have one key, and those that do not have two."""

import pytest

from rlhf_core.dataprep.keys import normalise, response_key, response_keys


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", "Cafe\u0301"),
        ("\uff12\uff0b\uff12\u3000\uff21", "2+2 a"),
        ("\uff76\uff9e\uff72\uff84\uff9e", "\u30ac\u30a4\u30c9"),
        ("a\u00a0 b\n", "A b"),
    ],
)
def test_form_width_case_and_white_space_are_folded(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("2²?", "22?"), ("1½", "11\u20442"), ("①", "1")])
def test_what_a_reader_sees_is_not_folded(one, other):
    assert response_key(one) != response_key(other)


def test_two_responses_are_told_apart_by_what_differs():
    assert response_keys("Yes", "no") == (response_key("yes "), response_key("No"))
    first, second = response_keys("Paris", "paris")
    assert first != second
    assert response_keys("paris\n", " Paris") == (second, first)
