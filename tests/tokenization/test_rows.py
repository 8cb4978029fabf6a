"""Tokenised rows in one file: the same as they were, in memory or mapped, and no file left."""

import gc
import os
from dataclasses import fields

import numpy as np
import pytest

from rlhf_core.errors import DataError, StorageError
from rlhf_core.tokenization import (
    Rows,
    TokenizedExample,
    TokenizedPair,
    TokenizedPrompt,
    TokenizedUnpaired,
    keep_rows,
    rows,
)
from tests.disks import no_larger_files


def ids(*tokens):
    return np.asarray(tokens, dtype=np.int32)


ROWS = {
    TokenizedPrompt: [TokenizedPrompt(f"p{i}", ids(*range(i))) for i in range(1, 9)],
    TokenizedExample: [
        TokenizedExample("half of a pair \ud800", ids(1, 2), ids(3)),
        TokenizedExample("turns", ids(1, 2), ids(), np.array([True, False])),
        TokenizedExample("", ids(), ids(2**31 - 1, -1)),
    ],
    TokenizedUnpaired: [
        TokenizedUnpaired("u", ids(7), ids(8, 9), label) for label in (True, False)
    ],
    TokenizedPair: [
        TokenizedPair("sure", ids(1), ids(2, 3), ids(4)),
        TokenizedPair("not sure", ids(1, 1), ids(), ids(5, 6, 7), 0.1 + 0.2, 1 / 3),
    ],
}


@pytest.fixture(params=[0, 1 << 20], ids=["mapped", "in-memory"])
def any_size(request, monkeypatch):
    monkeypatch.setattr(rows, "MAPPED_BYTES", request.param)


@pytest.fixture
def always_mapped(monkeypatch):
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1)


def content(row):
    """All that is in a row, with the types."""
    values = [getattr(row, field.name) for field in fields(row)]
    return [
        (value.dtype, value.tolist()) if isinstance(value, np.ndarray) else (type(value), value)
        for value in values
    ]


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("kind", ROWS)
def test_rows_come_back_as_they_were(kind, tmp_path):
    kept, given = keep_rows(kind, iter(ROWS[kind]), tmp_path), ROWS[kind]
    assert len(kept) == len(given)
    assert [content(row) for row in kept] == [content(row) for row in given]
    assert content(kept[-1]) == content(given[-1])
    assert content(kept[np.int64(1)]) == content(given[1])
    part = kept[1::2]
    assert isinstance(part, Rows)
    assert [content(row) for row in part] == [content(row) for row in given[1::2]]
    assert content(part[0]) == content(given[1])
    with pytest.raises(IndexError):
        kept[len(given)]


@pytest.mark.usefixtures("any_size")
def test_no_rows_are_no_rows(tmp_path):
    kept = keep_rows(TokenizedPrompt, [], tmp_path)
    assert not kept
    assert list(kept) == []


def held(folder):
    """How often this process has files of a folder mapped, and open."""
    with open("/proc/self/maps") as lines:
        mapped = sum(str(folder) in line for line in lines)
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return mapped, sum(str(folder) in os.readlink(link) for link in links if os.path.islink(link))


@pytest.mark.usefixtures("always_mapped")
def test_a_mapped_file_has_no_name_and_goes_with_its_rows(tmp_path):
    folder = tmp_path / "new" / "reward"
    kept = keep_rows(TokenizedPair, ROWS[TokenizedPair], folder)
    assert held(folder)[0] == 1
    assert list(folder.iterdir()) == []  # nothing for a kill to leave
    row = kept[1]
    del kept
    assert row.rejected_ids.tolist() == [5, 6, 7]  # a row outlives the others
    del row
    gc.collect()
    assert held(folder) == (0, 0)


@pytest.mark.usefixtures("always_mapped")
def test_an_error_while_rows_come_leaves_nothing(tmp_path):
    def torn():
        yield from ROWS[TokenizedPair]
        raise DataError("line 3 is no pair")

    with pytest.raises(DataError, match="line 3 is no pair"):
        keep_rows(TokenizedPair, torn(), tmp_path)
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert held(tmp_path) == (0, 0)


@pytest.mark.usefixtures("always_mapped")
def test_a_full_disk_is_told_in_one_line(tmp_path):
    many = (TokenizedPrompt("p", ids(*range(100))) for _ in range(1_000))
    with pytest.raises(StorageError) as refusal, no_larger_files(100_000):
        keep_rows(TokenizedPrompt, many, tmp_path)
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path / 'tokens'} cannot be written: File too large; raise the")
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_slice_makes_no_row():
    made = []
    squares = Rows(lambda place: made.append(place) or place**2, range(10))
    part = squares[2:8][::3]
    assert len(part) == 2
    assert made == []
    assert list(part) == [4, 25]
    assert made == [2, 5]
