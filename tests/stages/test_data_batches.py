"""A batch on its way into a repository, without git and DVC."""

import json
import tracemalloc

import pytest

from rlhf_core.adapters.datasets import versioning
from rlhf_core.config import SourceConfig
from rlhf_core.errors import DataError
from rlhf_core.stages.versions.batches import add_batch
from tests.stages.data_helpers import rows, write


@pytest.fixture
def clone(tmp_path, monkeypatch):
    monkeypatch.setattr(versioning, "dvc", lambda *_, **__: "")
    return tmp_path / "clone"


def test_a_large_batch_goes_through_without_lying_in_memory(clone, tmp_path):
    add_batch(SourceConfig(path=write(tmp_path / "small.jsonl", rows(range(10)))), clone, ())
    large = SourceConfig(path=write(tmp_path / "large.jsonl", rows(range(4_000))))
    tracemalloc.start()
    try:
        add_batch(large, clone, ())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000  # As records these rows are 15 million bytes.


def test_rows_that_cannot_be_used_are_kept_beside_the_batch(clone, tmp_path):
    same = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: a"}
    good = {**same, "rejected": "\n\nHuman: q\n\nAssistant: b"}
    path = write(tmp_path / "hh.jsonl", [same, good, same])
    added = add_batch(SourceConfig(path=path, format="hh"), clone, ())
    assert added.set_aside == {"identical_responses": 2}
    aside = (clone / "data/raw/set-aside/batch-0001.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in aside] == [1, 3]
    only_bad = SourceConfig(path=write(tmp_path / "bad.jsonl", [same]), format="hh")
    with pytest.raises(DataError, match=r"no comparison to add; .*identical"):
        add_batch(only_bad, clone, ())
