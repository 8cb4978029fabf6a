"""A prepared directory is trusted again only where it was made from the same things."""

import pytest

from rlhf_core.dataprep.manifest import Manifest, code_digest


def manifest(**room) -> Manifest:
    return Manifest(fingerprint="f", sha256="s", files={}, **room)


def test_two_files_of_one_name_both_count(tmp_path):
    files = [tmp_path / room / "__init__.py" for room in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    before = code_digest(tmp_path, files)
    for file in files:
        file.write_text("changed")
        assert code_digest(tmp_path, files) != before
        file.write_text("")
    assert code_digest(tmp_path, files[::-1]) == before


@pytest.mark.parametrize(
    ("limit", "holds"), [(None, False), (9, False), (10, True), (14, True), (15, False)]
)
def test_a_limit_of_prompts_holds_where_it_would_keep_the_same_ones(limit, holds):
    assert manifest(longest_prompt=10, shortest_left_out=15).holds_for(limit) == holds


def test_where_no_prompt_was_left_out_a_limit_must_only_be_long_enough():
    found = manifest(longest_prompt=10)
    assert [found.holds_for(limit) for limit in (None, 9, 10, 99)] == [True, False, True, True]
    assert manifest().holds_for(1)
