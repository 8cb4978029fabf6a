"""Words of many texts at once are those that each has alone, and so are their hashes."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
    words = words_of(texts)
    assert len(set(words.distinct)) == len(words.distinct)
    found = [
        [words.distinct[code] for code in words.codes[start:end]]
        for start, end in pairwise(words.edges.tolist())
    ]
    assert found == [text.split(" ") for text in texts]


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
