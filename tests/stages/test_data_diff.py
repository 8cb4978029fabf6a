"""Differences between datasets: which pairs came, went and changed their winner."""

from pathlib import Path
from types import SimpleNamespace

from rlhf_core.schema import Message, PreferencePair
from rlhf_core.stages.versions.diff import compare_datasets
from rlhf_core.storage.records import write_records


def dataset(folder: Path, chosen: str, rejected: str) -> SimpleNamespace:
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
    return SimpleNamespace(**files)


def test_a_pair_that_differs_in_white_space_alone_can_change_its_winner(tmp_path):
    first = dataset(tmp_path / "1", "if a:\n    b", "if a:\nb")
    second = dataset(tmp_path / "2", "if a:\nb", "if a:\n    b\n")
    diff = compare_datasets(first, second)
    assert (diff.num_came, diff.num_went, diff.num_relabelled, diff.num_same) == (0, 0, 1, 0)
    again = compare_datasets(first, first)
    assert (again.num_relabelled, again.num_same) == (0, 1)
