"""Web addresses: gone as whole words, however long a word is."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.dataprep.cleaning.addresses import without_addresses


@given(st.text(alphabet="aw.:/ \n\u3000(", max_size=40))
def test_a_word_with_an_address_goes_and_all_else_stays(text):
    plain = re.sub(r"\S+", lambda m: " " if "://" in m[0] or "www." in m[0] else m[0], text)
    assert without_addresses(text) == plain


def test_a_huge_word_beside_an_address_takes_no_time():
    started = time.process_time()
    text = "see www.x.org " + "a" * 200_000
    assert without_addresses(text) == "see   " + "a" * 200_000
    assert time.process_time() - started < 1
