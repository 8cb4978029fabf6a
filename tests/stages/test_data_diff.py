"""Differences between datasets: which rows came, went and changed their winner or label."""

from pathlib import Path
from types import SimpleNamespace

from rlhf_core.schema import Message, PreferencePair, UnpairedExample
from rlhf_core.stages.versions.diff import compare_datasets
from rlhf_core.storage.records import write_records


def dataset(folder: Path, chosen: str, rejected: str, labels=None) -> SimpleNamespace:
    pair = PreferencePair(
        comparison_id="1",
        prompt=(Message(role="user", content="Q?"),),
        chosen=chosen,
        rejected=rejected,
        agreement=1.0,
    )
    names = ("reward_train", "reward_heldout", "judge_train", "judge_heldout")
    files = {name: folder / f"{name}.jsonl" for name in names}
    for name, path in files.items():
        write_records(path, [pair] if name == "reward_train" else [])
    files |= {"unpaired_train": None, "unpaired_heldout": None}
    if labels is not None:
        examples = [
            UnpairedExample(example_id=text, prompt=pair.prompt, response=text, label=label)
            for text, label in labels.items()
        ]
        for name, rows in (("unpaired_train", examples[1:]), ("unpaired_heldout", examples[:1])):
            files[name] = folder / f"{name}.jsonl"
            write_records(files[name], rows)
    return SimpleNamespace(**files)


def test_a_pair_that_differs_in_white_space_alone_can_change_its_winner(tmp_path):
    first = dataset(tmp_path / "1", "if a:\n    b", "if a:\nb")
    second = dataset(tmp_path / "2", "if a:\nb", "if a:\n    b\n")
    diff = compare_datasets(first, second)
    assert (diff.num_came, diff.num_went, diff.num_relabelled, diff.num_same) == (0, 0, 1, 0)
    again = compare_datasets(first, first)
    assert (again.num_relabelled, again.num_same) == (0, 1)


def test_labelled_responses_come_go_and_change_their_label(tmp_path):
    old, new = {"a": True, "b": True, "c": False}, {"b": False, "c": False, "d": True, "e": True}
    plain = dataset(tmp_path / "0", "x", "y")
    first = dataset(tmp_path / "1", "x", "y", old)
    second = dataset(tmp_path / "2", "x", "y", new)
    assert compare_datasets(plain, plain).unpaired is None
    found = compare_datasets(first, second).unpaired
    counts = (found.num_came, found.num_went, found.num_relabelled, found.num_same)
    assert counts == (2, 1, 1, 1)
    assert [row.example_id for row in found.came] == ["d", "e"]
    assert [(row.example_id, row.label) for row in found.relabelled] == [("b", False)]
    few = compare_datasets(first, second, limit=1).unpaired
    assert (few.num_came, len(few.came), few.went[0].response) == (2, 1, "a")
    assert compare_datasets(plain, second).unpaired.num_came == 4
    assert compare_datasets(first, plain).unpaired.num_went == 3
