"""The stage as a whole: small raw files in, a dataset that can be trusted out."""

import csv
import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlhf_core.adapters.datasets.versioning import directory_md5
from rlhf_core.config import PipelineConfig, PreparationConfig
from rlhf_core.dataprep.assemble import PAIR_FILES
from rlhf_core.dataprep.keys import conversation_key
from rlhf_core.errors import DataError
from rlhf_core.schema import (
    DatasetRef,
    DatasetSplits,
    Demonstration,
    PreferencePair,
    Prompt,
)
from rlhf_core.stages.preparation.dataset import read_splits
from rlhf_core.stages.preparation.tokens import prompt_limit
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import md5_of, read_records, sha256_of
from tests.stages.prepare_helpers import comparisons, make_config, write

KINDS = {
    "demonstrations": Demonstration,
    "reward": PreferencePair,
    "judge": PreferencePair,
    "prompts": Prompt,
}


@pytest.fixture
def config(tmp_path) -> PipelineConfig:
    write(tmp_path / "pairs.jsonl", comparisons())
    return make_config(tmp_path)


def references(splits: DatasetSplits) -> dict[str, DatasetRef]:
    return {name: value for name, value in splits if isinstance(value, DatasetRef)}


def keys_by_file(splits: DatasetSplits) -> dict[str, set[bytes]]:
    return {
        name: {conversation_key(row.prompt) for row in read_records(ref, KINDS[name.split("_")[0]])}
        for name, ref in references(splits).items()
    }


def test_references_prove_the_bytes(prepared):
    _, splits = prepared
    for ref in references(splits).values():
        assert sha256_of(ref.path) == ref.sha256
        assert md5_of(ref.path) == ref.dvc_md5
        assert len(ref.path.read_text().splitlines()) == ref.num_rows > 0
    assert splits.dvc_md5 == directory_md5(splits.directory)
    assert read_splits(splits.directory) == splits


def test_no_prompt_is_on_both_sides_or_in_both_halves(prepared):
    keys = keys_by_file(prepared[1])
    sides = {
        side: set().union(*(found for name, found in keys.items() if name.endswith(side)))
        for side in ("_train", "_heldout")
    }
    assert not sides["_train"] & sides["_heldout"]
    assert not (keys["reward_train"] | keys["reward_heldout"]) & (
        keys["judge_train"] | keys["judge_heldout"]
    )


def test_a_person_who_votes_twice_in_one_row_does_not_outvote_two(tmp_path):
    rows = comparisons()
    honest = [{"annotator": name, "choice": "b"} for name in ("ann", "bob")]
    rows[0]["votes"] = [{"annotator": "loud", "choice": "a"}] * 3 + honest
    write(tmp_path / "pairs.jsonl", rows)
    splits = prepare_data(make_config(tmp_path))
    found = [p for n in PAIR_FILES for p in read_records(references(splits)[n], PreferencePair)]
    [pair] = [p for p in found if rows[0]["response_b"] in (p.chosen, p.rejected)]
    assert (pair.chosen, pair.num_votes) == (rows[0]["response_b"], 3)
    report = json.loads(splits.report.read_text())
    assert report["agreement"]["num_repeated_votes"] == 2
    [check] = [
        check
        for suite in report["validation"]
        for check in suite["checks"]
        if check["name"] == "no annotator votes twice on one comparison"
    ]
    assert not check["passed"]


def test_every_row_is_kept_or_set_aside_with_its_line(prepared):
    _, splits = prepared
    report = json.loads(splits.report.read_text())
    assert report["inputs"]["preferences"] == {
        "rows": 400,
        "kept": 360,
        "set_aside": {"tie": 40},
        "source_rows": {"pairs": 400},
    }
    rows = pq.read_table(splits.directory / "quarantine.parquet").to_pylist()
    assert [row["line"] for row in rows] == list(range(1, 401, 10))
    assert json.loads(rows[0]["row"])["comparison_id"] == "c0"
    pairs = sum(
        ref.num_rows for name, ref in references(splits).items() if name[:2] in ("re", "ju")
    )
    assert pairs == 360


def test_the_same_input_gives_the_same_bytes_elsewhere(prepared, with_pictures, tmp_path):
    config, first = prepared
    again = config.model_copy(
        update={"data": config.data.model_copy(update={"output": tmp_path / "b"})}
    )
    assert prepare_data(again).dvc_md5 == first.dvc_md5


def test_a_matching_output_is_used_again_and_a_damaged_one_is_not(prepared, caplog):
    caplog.set_level(logging.INFO, logger="rlhf_core")  # which a command before may have set higher
    config, first = prepared
    before = first.reward_train.path.stat().st_ino
    assert prepare_data(config) == first
    assert first.reward_train.path.stat().st_ino == before
    assert "prepared_data_reused" in caplog.text
    first.reward_train.path.write_text("damaged")
    assert prepare_data(config) == first
    assert prepare_data(config.model_copy(update={"seed": 1})).sha256 != first.sha256


def test_rows_added_later_move_no_other_row(prepared, tmp_path):
    config, splits = prepared
    before = keys_by_file(splits)
    write(tmp_path / "pairs.jsonl", comparisons(600)[::-1])
    after = keys_by_file(prepare_data(config))
    for name, keys in before.items():
        assert keys <= after[name]


def test_files_of_their_own_supply_demonstrations_and_prompts(config, tmp_path):
    demonstrations = [{"prompt": f"Question {i}?", "response": "Because."} for i in range(100)]
    demonstrations += [
        {"prompt": "Held 1?", "response": "x"},
        {"prompt": "Other?", "response": " "},
    ]
    write(tmp_path / "d.jsonl", [*demonstrations, demonstrations[0]])
    write(
        tmp_path / "p.jsonl",
        [{"prompt": f"Question {i}?", "tags": {"style": "plain"}, "x": "y"} for i in range(250)],
    )
    write(
        tmp_path / "h.jsonl",
        [{"prompt": f"Held {i}?"} for i in range(9)] + [{"prompt": "QUESTION 3?"}],
    )
    splits = prepare_data(
        make_config(
            tmp_path,
            demonstrations={"path": str(tmp_path / "d.jsonl")},
            prompts={"path": str(tmp_path / "p.jsonl"), "heldout_path": str(tmp_path / "h.jsonl")},
        )
    )
    report = json.loads(splits.report.read_text())
    [read] = report["reading"]["prompts"].values()
    assert (read["rows"], read["used"], read["unread_columns"]) == (250, 250, {"x": 250})
    inputs = report["inputs"]
    assert inputs["demonstrations"]["set_aside"] == {
        "empty_response": 1,
        "exact_duplicate": 1,
        "prompt_is_heldout": 2,
    }
    assert inputs["preferences"]["set_aside"]["prompt_is_heldout"] == 2
    assert inputs["heldout_prompts"] == {"rows": 10, "kept": 10, "set_aside": {}}
    keys = keys_by_file(splits)
    assert len(keys["prompts_heldout"]) == 10
    assert not keys["prompts_train"] & (keys["prompts_heldout"] | keys["reward_heldout"])
    assert read_records(splits.prompts_train, Prompt)[0].tags == {"style": "plain"}


def test_without_them_both_come_from_the_pairs(prepared):
    _, splits = prepared
    chosen = {pair.chosen for pair in read_records(splits.reward_train, PreferencePair)}
    demonstrations = read_records(splits.demonstrations_train, Demonstration)
    assert chosen < {item.response for item in demonstrations}
    keys = keys_by_file(splits)
    assert keys["prompts_train"] == keys["reward_train"] | keys["judge_train"]


def change_odd(rows: list[dict], **change) -> list[dict]:
    return [{**row, **change} if i % 2 else row for i, row in enumerate(rows)]


def all_tied(rows: list[dict]) -> list[dict]:
    votes = [{"annotator": "y", "choice": "a"}, {"annotator": "z", "choice": "b"}]
    return [{**row, "votes": votes} for row in rows]


BAD = [
    ("broken lines", lambda rows: [*rows, *["{"] * 101], "101 of 501 rows cannot be read, more"),
    ("missing column", lambda _: [{"prompt": "x"}] * 400, "missing column 'response_a'"),
    ("nothing", lambda rows: [], "no rows"),
    ("all ties", all_tied, "no rows left of 400 rows"),
    ("too few", lambda rows: rows[:50], "45 pairs left of 50 rows, expected at least 100"),
    (
        "many empty",
        lambda rows: change_odd(rows, response_a=""),
        "is not blank: 200 of 400 rows fail; first: comparison_id 'c1' of pairs, line 2;",
    ),
    (
        "many alike",
        lambda rows: change_odd(rows, response_a="x", response_b="x "),
        "check failed: responses differ",
    ),
    (
        "one id, two rows",
        lambda rows: [*rows, {**rows[1], "response_a": "new"}],
        "comparison_id 'c1' of pairs, line 401 stands for other texts in pairs, line 2; give one",
    ),
]


@pytest.mark.parametrize(("name", "damage", "says"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_is_one_line_and_leaves_the_old_dataset(prepared, tmp_path, name, damage, says):
    config, before = prepared
    rows = damage(comparisons())
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError) as raised:
        prepare_data(config)
    message = str(raised.value)
    assert "pairs.jsonl" in message
    assert says in message
    assert "\n" not in message
    assert read_splits(config.data.output).sha256 == before.sha256
    assert not list(tmp_path.glob("*.tmp"))
    if "kept in" in message:
        assert Path(message.rsplit("kept in ", 1)[1]).read_text().strip()
    if "reasons in" in message:
        assert pq.read_table(message.rsplit("reasons in ", 1)[1]).num_rows > 0


def test_odd_rows_are_filtered_out_and_every_row_of_the_file_is_accounted_for(config, tmp_path):
    odd = ["{", '{"prompt": "x"}', '{"prompt": "x", "prompt": "y"}']
    lines = [*map(json.dumps, comparisons()), *odd]
    (tmp_path / "pairs.jsonl").write_text("".join(line + "\n" for line in lines))
    report = json.loads(prepare_data(config).report.read_text())
    read = report["reading"]["preferences"][str(tmp_path / "pairs.jsonl")]
    assert read["rows"] == 403 == read["used"] + sum(read["set_aside"].values())
    assert read["set_aside"] == {"broken_row": 2, "missing_column": 1}
    preferences = report["inputs"]["preferences"]
    assert (
        preferences["rows"] == preferences["kept"] + sum(preferences["set_aside"].values()) == 403
    )
    table = pq.read_table(config.data.output / "quarantine.parquet").to_pylist()
    kept = {row["line"]: row for row in table if row["line"] > 400}
    assert {line: row["reason"] for line, row in kept.items()} == {
        401: "broken_row",
        402: "missing_column",
        403: "broken_row",
    }
    assert "the key 'prompt' is duplicated" in kept[403]["detail"]
    assert json.loads(kept[403]["row"]) == odd[2]


def test_demonstrations_of_which_too_many_cannot_be_read_stop_the_run(tmp_path):
    write(tmp_path / "pairs.jsonl", comparisons())
    rows = [json.dumps({"prompt": f"Question {i}?", "response": "yes"}) for i in range(40)]
    path = tmp_path / "told.jsonl"
    path.write_text("\n".join([*rows, *["{"] * 11]))
    config = make_config(tmp_path, demonstrations={"path": str(path)})
    with pytest.raises(DataError, match=r"told\.jsonl: 11 of 51 rows cannot be read, more than"):
        prepare_data(config)
    path.write_text("\n".join([*rows, "{"]))
    report = json.loads(prepare_data(config).report.read_text())
    assert report["inputs"]["demonstrations"]["set_aside"]["broken_row"] == 1


def test_a_missing_file_is_named(config, tmp_path):
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(DataError, match=r"pairs\.jsonl: no such file"):
        prepare_data(config)


def test_low_or_undefined_agreement_stops(config, tmp_path):
    with pytest.raises(DataError, match=r"alpha is -?0\.\d+, expected at least 0\.9"):
        prepare_data(make_config(tmp_path, min_alpha=0.9))
    single = [{**row, "votes": row["votes"][:1]} for row in comparisons()]
    write(tmp_path / "pairs.jsonl", single)
    with pytest.raises(DataError, match="agreement is not defined"):
        prepare_data(make_config(tmp_path, min_alpha=0.1))


def test_a_split_without_rows_is_refused(config, tmp_path):
    with pytest.raises(DataError, match=r"no rows for .*judge_heldout"):
        prepare_data(make_config(tmp_path, judge_fraction=0.0))


def test_pictures_and_data_docs_are_made(prepared):
    _, splits = prepared
    pictures = {path.name for path in (splits.directory / "pictures").iterdir()}
    assert {"lengths.png", "label_by_length.csv", "splits.png"} <= pictures
    assert "raw comparisons" in (splits.directory / "docs" / "index.html").read_text()


def test_data_docs_come_and_go_with_the_dataset(prepared, tmp_path):
    config, splits = prepared
    index = splits.directory / "docs" / "index.html"
    before = index.stat().st_ino
    with pytest.raises(DataError):
        prepare_data(make_config(tmp_path, min_alpha=0.9))
    assert index.stat().st_ino == before
    assert "raw comparisons" in (tmp_path / "prepared-failed/docs/index.html").read_text()
    index.unlink()
    assert prepare_data(config) == splits
    assert index.is_file()


def test_every_annotator_is_in_the_table(prepared):
    with (prepared[1].directory / "annotators.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["annotator"] for row in rows} == {"w0", "w1", "w2"}
    assert sum(int(row["num_votes"]) for row in rows) == 1_200
    assert {"alpha", "low", "high", "side_fraction", "median_seconds", "careless"} <= set(rows[0])
    assert min(float(row["reliability"]) for row in rows) > 0.5


def test_the_failing_rows_are_kept_in_full(config, tmp_path):
    rows = change_odd(comparisons(), response_a=" ", response_b="word " * 200)
    write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match="response_a is not blank"):
        prepare_data(config)
    kept = (tmp_path / "prepared-failed" / "failing-rows.jsonl").read_text().splitlines()
    assert len(kept) == 200
    assert json.loads(kept[0])["response_b"] == "word " * 200


def test_published_transcripts_are_prepared(tmp_path, request):
    shared = Path(__file__).parents[3] / "shared" / "data"
    path = shared / "hh" / "helpful-base.test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    splits = prepare_data(make_config(tmp_path, preferences={"path": str(path), "format": "hh"}))
    report = json.loads(splits.report.read_text())["inputs"]["preferences"]
    assert report == {
        "rows": 2354,
        "kept": 2339,
        "set_aside": {"empty_response": 4, "identical_responses": 2, "parts_before_last_turn": 9},
        "source_rows": {"helpful-base.test": 2354},
    }


@pytest.mark.parametrize(
    ("policy", "limit"),
    [({"algorithm": "ppo", "max_new_tokens": 64}, 448), ({"algorithm": "dpo"}, 256), (None, None)],
)
def test_prompts_that_evaluation_will_not_ask_are_left_out(policy, limit):
    data = {"preferences": {"path": "p.jsonl"}}
    wanted = {"model": {"base": "unused"}, "data": data, "policy": policy}
    config = PreparationConfig.model_validate(wanted)
    assert prompt_limit(config) == limit
    if limit is not None:
        assert limit == config.longest_prompt()


def test_files_of_one_name_in_two_folders_are_two_sources(tmp_path):
    for folder in ("wk1", "wk2"):
        (tmp_path / folder).mkdir()
        cells = "".join(f"{n},{folder} {n}?,Yes {n}.,No {n}.,a\n" for n in range(100))
        text = f"comparison_id,prompt,response_a,response_b,choice\n{cells}"
        (tmp_path / folder / "votes.csv").write_text(text)
    one, two = (
        {"path": str(tmp_path / folder / "votes.csv"), "format": "flat"}
        for folder in ("wk1", "wk2")
    )
    splits = prepare_data(make_config(tmp_path, preferences=one, more_preferences=[two]))
    pairs = [
        pair
        for name, ref in references(splits).items()
        if name in PAIR_FILES
        for pair in read_records(ref, PreferencePair)
    ]
    assert {pair.source for pair in pairs} == {"wk1-votes", "wk2-votes"}
    assert len({pair.comparison_id for pair in pairs}) == len(pairs) == 200
    report = json.loads(splits.report.read_text())
    assert report["inputs"]["preferences"]["source_rows"] == {"wk1-votes": 100, "wk2-votes": 100}
