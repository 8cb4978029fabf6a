"""Words of many texts at once are those that each has alone, and so are their hashes."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_core.dataprep import words as words_module
from rlhf_core.dataprep.cleaning import word_hashes
from rlhf_core.dataprep.cleaning.signatures import signature, signatures
from rlhf_core.dataprep.keys import bare, normalise
from rlhf_core.dataprep.words import words_of

PIECES = [
    "the",
    "The",
    "light,",
    " ",
    "  ",
    "\n",
    "\t",
    "\u00a0",
    "\u3000",
    "e",
    "\u0301",
    "\uff21\uff22",
]
TEXT = st.lists(
    st.sampled_from([*PIECES, "ß", "İ", "\u03a3", "\u03c3", "🙂", "中国", "..."]), max_size=12
).map("".join) | st.text(max_size=8)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=6))
@example(["half \ud800 of a pair", "", " "])
def test_words_are_what_stands_between_spaces(texts):
    assert taken_apart(words_of(texts)) == [text.split(" ") for text in texts]


def taken_apart(words):
    return [
        [words.distinct[code] for code in words.codes[start:end]]
        for start, end in pairwise(words.edges.tolist())
    ]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=6), st.lists(TEXT, min_size=6))
def test_of_texts_that_were_asked_for_before_the_words_are_the_same(lists, texts):
    for places in lists:
        asked = [texts[place] for place in places]
        words = words_of(asked)
        assert taken_apart(words) == [text.split(" ") for text in asked]
        amounts = [sum(map(len, text.split(" ")[1:-1])) for text in asked]
        assert words.sums_between(len) == amounts


def test_texts_that_another_check_asked_for_are_not_taken_apart_again(monkeypatch):
    responses = [f"the light house {number} is open" for number in range(20)]
    words_of([*responses, "a question"])
    words_of(["<user> a question"])
    seen = []
    taken = words_module._taken_apart
    monkeypatch.setattr(
        words_module, "_taken_apart", lambda texts: seen.append(texts) or taken(texts)
    )
    again = words_of([*responses[5:], "another one"])
    assert seen == [["another one"]]
    assert taken_apart(again)[-2:] == [responses[-1].split(" "), ["another", "one"]]


@settings(deadline=None)
@given(st.lists(TEXT.filter(lambda text: text.isprintable() or text.isascii()), max_size=6))
def test_hashes_of_many_texts_are_those_of_their_normalised_words(texts):
    expected = [
        [zlib.crc32(bare(word).encode()) for word in normalise(text).split()] for text in texts
    ]
    assert [hashes.tolist() for hashes in word_hashes._hashes_of(texts)] == expected
    again = word_hashes.text_hashes([*texts, *texts])
    assert [hashes.tolist() for hashes in again] == expected * 2


def test_hashes_that_others_are_given_too_cannot_be_written_into():
    [hashes] = word_hashes.text_hashes(["the light house"])
    with pytest.raises(ValueError, match="read-only"):
        hashes += 1


def test_signatures_of_many_groups_are_those_of_each():
    long = " ".join(f"word{number}" for number in range(1_300))
    groups = [
        ("a b c d", "e"),
        ("",),
        (long,),
        ("中国的首都是北京",),
        ("x y",),
        ("\u3000", "A"),
    ]
    together = signatures(groups)
    np.testing.assert_array_equal(together, [signature(*texts) for texts in groups])
    assert len({row.tobytes() for row in together}) == len(groups)
