"""A batch on its way into a repository, without git and DVC."""

import json
import tracemalloc

import pytest

from rlhf_core.adapters.datasets import versioning
from rlhf_core.config import SourceConfig
from rlhf_core.errors import DataError
from rlhf_core.stages.versions.batches import add_batch
from tests.stages.data_helpers import CONFIG, DVC, rows, write


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


def test_a_copy_of_a_batch_under_another_name_is_the_same_batch(clone, tmp_path):
    def file(name: str, last: str):
        cells = "".join(f"{n},Q {n}?,Yes {n}.,No {n}.,a\n" for n in range(5))
        path = tmp_path / name
        path.write_text(
            f"comparison_id,prompt,response_a,response_b,choice\n{cells}5,Q?,Y.,N.,{last}\n"
        )
        return SourceConfig(path=path, format="flat")

    add_batch(file("anon.csv", "a"), clone, ())
    taken = ["batch-0001.jsonl.dvc"]
    with pytest.raises(DataError, match=r"copy\.csv: .*already there as batch-0001\.jsonl"):
        add_batch(file("copy.csv", "a"), clone, taken)
    assert add_batch(file("other.csv", "b"), clone, taken).name == "batch-0002.jsonl"


def test_a_batch_of_which_too_much_cannot_be_read_is_refused(clone, tmp_path):
    items = [*rows(range(8)), {"prompt": "no"}, {"prompt": "answers"}]
    add_batch(SourceConfig(path=write(tmp_path / "most.jsonl", items)), clone, ())
    path = write(tmp_path / "half.jsonl", [*items, *[{"prompt": "none"}] * 2])
    told = r"half\.jsonl: 4 of 12 rows cannot be read, more than .*_fraction = 0\.2; the first: "
    with pytest.raises(DataError, match=told):
        add_batch(SourceConfig(path=path), clone, ())
    (clone / "configs").mkdir()
    (clone / "configs" / "small.yaml").write_text(
        CONFIG.replace("min_pairs: 10", "max_unusable_fraction: 0.5")
    )
    (clone / "dvc.yaml").write_text(DVC)
    assert add_batch(SourceConfig(path=path), clone, ()).set_aside == {"missing_column": 4}


def test_next_weeks_file_of_the_same_name_has_ids_of_its_own(clone, tmp_path):
    def week(text: str):
        path = tmp_path / text / "votes.csv"
        path.parent.mkdir()
        cells = f"1,{text}?,Yes.,No.,a"
        path.write_text(f"comparison_id,prompt,response_a,response_b,choice\n{cells}\n")
        return SourceConfig(path=path, format="flat")

    names = [add_batch(week("one"), clone, ()).name]
    names.append(add_batch(week("two"), clone, [f"{name}.dvc" for name in names]).name)
    batches = [json.loads((clone / "data/raw/preferences" / name).read_text()) for name in names]
    assert [row["comparison_id"] for row in batches] == ["votes-1", "votes-batch-0002-1"]
    assert [row["source"] for row in batches] == ["votes", "votes-batch-0002"]
