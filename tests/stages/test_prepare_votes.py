"""What preparation makes of votes: soft labels, agreement, and one person once."""

import json

import pytest

from rlhf_core.dataprep.assemble import PAIR_FILES
from rlhf_core.schema import PreferencePair
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import iterate_records
from tests.stages.prepare_helpers import comparisons, make_config, write


def votes(*choices: str) -> list[dict]:
    return [{"annotator": f"w{i}", "choice": choice} for i, choice in enumerate(choices)]


def row(number: int, ballot: list[dict], **changes) -> dict:
    texts = {"response_a": f"Answer {number}.", "response_b": f"I do not know {number}."}
    return {"comparison_id": f"r{number}", "prompt": f"Odd {number}?", "votes": ballot} | {
        **texts,
        **changes,
    }


def prepared(tmp_path, rows, **data):
    write(tmp_path / "pairs.jsonl", rows)
    config = make_config(tmp_path, min_pairs=1, **data)
    prepare_data(config)
    report = json.loads((tmp_path / "prepared" / "report.json").read_text())
    pairs = {
        pair.comparison_id: pair
        for name in PAIR_FILES
        for pair in iterate_records(tmp_path / "prepared" / f"{name}.jsonl", PreferencePair)
    }
    return report, pairs


def test_a_tie_is_half_a_vote_for_each_side(tmp_path):
    extra = [
        row(1, votes("a", "tie")),
        row(2, votes("b", "b", "tie")),
        row(3, votes("a", "tie", "tie")),
        row(4, votes("a", "a", "b", "tie")),
    ]
    _, pairs = prepared(tmp_path, comparisons() + extra)
    assert pairs["r1"].probability == pairs["r1"].agreement == 0.75
    assert pairs["r2"].probability == pytest.approx(5 / 6)
    assert pairs["r2"].chosen == "I do not know 2."
    assert pairs["r4"].probability == 0.625
    assert "r3" not in pairs


def test_agreement_leaves_out_votes_on_rows_that_were_filtered_out(tmp_path):
    """At chance where rows stay, perfect where responses are one and the same."""
    noise = [row(n, votes(*("aab" if n % 2 else "abb"))) for n in range(300)]
    same = {"response_a": "Same.", "response_b": "Same."}
    broken = [row(n, votes("tie", "tie", "tie"), **same) for n in range(300, 400)]
    agreed_ties = [row(n, votes("tie", "tie", "tie")) for n in range(400, 500)]
    report, pairs = prepared(tmp_path, noise + broken + agreed_ties, max_unusable_fraction=0.9)
    agreement = report["agreement"]
    assert len(pairs) == 300
    assert agreement["krippendorff_alpha"]["value"] < 0
    assert agreement["krippendorff_alpha"]["num_samples"] == 300
    assert agreement["by_source"]["pairs"]["num_samples"] == 300
    assert agreement["krippendorff_alpha_of_all_votes"]["value"] > 0.3
    assert (agreement["num_votes"], agreement["num_votes_trained_on"]) == (1500, 900)
    assert report["measurements"]["metrics"]["data/krippendorff_alpha"]["value"] < 0


def test_people_who_were_split_count_as_disagreement(tmp_path):
    """Of two votes at random only equal ones leave a pair, which would look like agreement."""
    ballots = [votes(*("aa", "bb", "ab", "ba")[n % 4]) for n in range(400)]
    report, pairs = prepared(tmp_path, [row(n, ballot) for n, ballot in enumerate(ballots)])
    assert len(pairs) == 200
    assert report["agreement"]["krippendorff_alpha"]["value"] == pytest.approx(0, abs=0.01)


def export(path, completed_by, choices: list[str]) -> None:
    tasks = [
        {
            "id": number,
            "data": {"prompt": f"Q{number}?", "response_a": "Yes.", "response_b": "No."},
            "annotations": [
                {
                    "id": 10 * number + person,
                    "completed_by": completed_by(person),
                    "result": [{"value": {"selected": choice}}],
                }
                for person, choice in enumerate(choices)
            ],
        }
        for number in range(60)
    ]
    path.write_text(json.dumps(tasks))


def test_one_person_is_one_person_in_two_exports(tmp_path):
    """Two against two: an object beside a number would give three of them a second vote."""
    export(tmp_path / "one.json", lambda person: person, ["left", "right"])
    export(
        tmp_path / "two.json",
        lambda person: {"id": person, "email": f"{person}@example.org"},
        ["left"],
    )
    sources = [
        {"path": str(tmp_path / name), "format": "label_studio"}
        for name in ("one.json", "two.json")
    ]
    report, _ = prepared(tmp_path, comparisons(), more_preferences=sources)
    assert report["inputs"]["preferences"]["set_aside"] == {"tie": 100, "exact_duplicate": 60}
    assert report["agreement"]["num_annotators"] == 5


def test_blank_names_are_different_people(tmp_path):
    nobody = [{"annotator": name, "choice": "a"} for name in ("", " ", "")]
    named = [{"annotator": name, "choice": "b"} for name in (7, "7", " 7 ", 8)]
    _, pairs = prepared(tmp_path, [*comparisons(), row(1, nobody + named)])
    assert (pairs["r1"].num_votes, pairs["r1"].chosen) == (5, "Answer 1.")


def test_the_report_says_where_heads_decided(tmp_path):
    rows = [
        row(n, [{"annotator": f"p{n}-{i}", "choice": choice} for i, choice in enumerate("aab")])
        for n in range(60)
    ]
    report, _ = prepared(tmp_path, rows, votes={"method": "dawid_skene"})
    assert report["agreement"]["method"] == "dawid_skene"
    assert report["agreement"]["num_decided_by_heads"] == 60
    report, _ = prepared(tmp_path, rows)
    assert report["agreement"]["num_decided_by_heads"] is None
