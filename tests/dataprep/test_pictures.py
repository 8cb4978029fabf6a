"""Pictures: a PNG and the same numbers as CSV, the same bytes for the same data."""

import csv

from rlhf_core.dataprep.measures.pictures import PictureData, draw_pictures

DATA = PictureData(
    chosen_lengths=[10, 20, 30, 200],
    rejected_lengths=[5, 10, 15, 20],
    agreements=[1.0, 2 / 3, 1.0, 0.75],
    votes_per_annotator=[4, 8, 1],
    label_by_length=[(-10.0, 0.25, 2), (15.0, 0.75, 2)],
)
SPLITS = {"reward_train": 3, "reward_heldout": 1}


def test_every_picture_has_its_numbers(tmp_path):
    paths = draw_pictures(DATA, SPLITS, tmp_path / "pictures")
    names = ["lengths", "agreement", "votes_per_annotator", "label_by_length", "splits"]
    assert [path.stem for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    tables = {
        name: list(csv.DictReader((tmp_path / "pictures" / f"{name}.csv").open())) for name in names
    }
    assert [row["votes"] for row in tables["votes_per_annotator"]] == ["8", "4", "1"]
    assert sum(int(row["pairs"]) for row in tables["agreement"]) == 4
    assert sum(int(row["rejected"]) for row in tables["lengths"]) == 4
    assert tables["label_by_length"][1] == {"difference": "15.0", "a_wins": "0.75", "pairs": "2"}
    assert tables["splits"][0] == {"file": "reward_train", "rows": "3"}


def test_the_same_data_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        draw_pictures(DATA, SPLITS, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
