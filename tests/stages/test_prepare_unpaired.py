"""Responses with good or bad labels on their way through preparation."""

import json
import logging

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from rlhf_core.config import PipelineConfig, load_preparation
from rlhf_core.dataprep.keys import dialogue_key
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.schema import PreferencePair, UnpairedExample
from rlhf_core.stages.preparation import build
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import read_records
from tests.stages.prepare_helpers import comparisons, make_config, write


def labelled(num_rows=200, first=1_000):
    """Rows to prompts that no comparison has, good and bad by turns."""
    return [
        {
            "prompt": f"Topic {i} of {i * i}?",
            "completion": f"Reply {i} {i**3}.",
            "label": i % 2 == 0,
        }
        for i in range(first, first + num_rows)
    ]


def prepared(tmp_path, rows, train_on=None, **data):
    write(tmp_path / "pairs.jsonl", comparisons())
    write(tmp_path / "labels.jsonl", rows)
    settings = make_config(tmp_path, **data).model_dump(mode="json")
    settings["data"]["unpaired"] = [str(tmp_path / "labels.jsonl")]
    settings["policy"] = {"algorithm": "dpo", "loss": "kto", "train_on": train_on}
    return prepare_data(PipelineConfig.model_validate(settings))


def examples(splits):
    return [
        row
        for ref in (splits.unpaired_train, splits.unpaired_heldout)
        for row in read_records(ref, UnpairedExample)
    ]


def reasons(splits):
    table = pq.read_table(splits.directory / "quarantine.parquet").to_pylist()
    return {row["row_id"]: row["reason"] for row in table if row["input"] == "unpaired"}


def test_rows_keep_prompt_response_and_label(tmp_path):
    rows = labelled()
    splits = prepared(tmp_path, rows)
    found = examples(splits)
    labels = json.loads(splits.report.read_text())["labels"]
    assert labels["sources"] == {"labels": {"good": 100, "bad": 100}}
    assert sum(labels["sides"]["train"].values()) == splits.unpaired_train.num_rows
    said = {(row.prompt[-1].content, row.response, row.label) for row in found}
    assert said == {(row["prompt"], row["completion"], row["label"]) for row in rows}


def test_chats_with_a_label_are_read(tmp_path):
    rows = labelled()
    as_chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ],
            "label": row["label"],
        }
        for row in rows[:100]
    ]
    as_lists = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
            "label": int(row["label"]),
        }
        for row in rows[100:]
    ]
    plain, chats = tmp_path / "plain", tmp_path / "chats"
    plain.mkdir()
    chats.mkdir()
    both = [
        [(row.prompt, row.response, row.label) for row in examples(prepared(folder, given))]
        for folder, given in ((plain, rows), (chats, as_chats + as_lists))
    ]
    assert both[0] == both[1]


def test_a_dataset_without_them_is_what_it_was(tmp_path):
    write(tmp_path / "pairs.jsonl", comparisons())
    plain = prepare_data(make_config(tmp_path))
    assert (plain.unpaired_train, plain.unpaired_heldout) == (None, None)
    assert not list(plain.directory.glob("unpaired*"))
    manifest = json.loads((plain.directory / "manifest.json").read_text())
    assert len(manifest["files"]) == 8
    more = prepared(tmp_path, labelled())
    assert more.sha256 != plain.sha256
    assert more.reward_train.sha256 == plain.reward_train.sha256


def test_unusable_repeated_and_contradictory_rows_are_kept_with_a_reason(tmp_path):
    rows = labelled()
    rows += [
        {"prompt": "", "completion": "Hm.", "label": True},
        {"prompt": "Empty?", "completion": " ", "label": True},
        rows[0],
        {**rows[1], "label": not rows[1]["label"]},
        {"prompt": "No label?", "completion": "None."},
        {"prompt": "Odd label?", "completion": "Odd.", "label": "maybe"},
        {**rows[2], "label": not rows[2]["label"]},
        rows[2],
    ]
    splits = prepared(tmp_path, rows)
    found = reasons(splits)
    assert found["labels:201"] == "empty_prompt"
    assert found["labels:202"] == "empty_response"
    assert found["labels:203"] == "exact_duplicate"
    assert found["labels:2"] == found["labels:204"] == "conflicting_labels"
    assert (found["labels:207"], found["labels:208"]) == ("conflicting_labels", "exact_duplicate")
    assert "labels:3" not in found
    counts = json.loads(splits.report.read_text())["inputs"]["unpaired"]
    assert counts["rows"] == len(rows) == counts["kept"] + sum(counts["set_aside"].values())
    assert counts["set_aside"]["missing_column"] == counts["set_aside"]["unusable_value"] == 1
    assert counts["kept"] == len(examples(splits)) == 199


def test_near_repeats_of_one_label_go(tmp_path):
    long = "the opening hours of the town library on market days in winter and in summer "
    rows = labelled()
    rows += [
        {"prompt": f"{long}please", "completion": f"{long} are nine to five", "label": label}
        for label in (True,)
    ]
    rows.append({"prompt": f"{long}please", "completion": f"{long} are nine to six", "label": True})
    rows.append(
        {"prompt": f"{long}please", "completion": f"{long} are nine to two", "label": False}
    )
    splits = prepared(tmp_path, rows, cleaning={"tokens": False, "near_duplicates": 0.8})
    assert reasons(splits)["labels:202"] == "near_duplicate"
    assert "labels:203" not in reasons(splits)


def test_what_is_held_out_or_judged_in_pairs_does_not_train_the_policy(tmp_path):
    asked = [
        {"prompt": f"Question {i}?", "completion": f"Said {i}.", "label": i % 2 == 0}
        for i in range(200)
    ]
    splits = prepared(tmp_path, labelled() + asked)
    trained = {dialogue_key(r.prompt) for r in read_records(splits.unpaired_train, UnpairedExample)}

    def of(*refs):
        return {
            dialogue_key(row.prompt) for ref in refs for row in read_records(ref, PreferencePair)
        }

    assert not trained & of(splits.reward_heldout, splits.judge_heldout, splits.judge_train)
    assert trained & of(splits.reward_train)
    assert set(reasons(splits).values()) == {"prompt_trains_judge"}


def test_reserved_prompts_are_not_trained_on(tmp_path):
    rows = labelled()
    held = [{"prompt": row["prompt"]} for row in rows[:5]]
    held += [{"prompt": f"Reserved {i}?"} for i in range(20)]
    path = write(tmp_path / "held.jsonl", held)
    splits = prepared(tmp_path, rows, prompts={"heldout_path": str(path)}, near_dialogues=None)
    assert reasons(splits) == {f"labels:{n}": "prompt_is_heldout" for n in range(1, 6)}


def test_a_file_that_is_mostly_broken_is_refused(tmp_path):
    rows = labelled(60) + [{"prompt": "P?", "completion": "C", "label": "?"}] * 40
    with pytest.raises(DataError, match=r"labels.jsonl: 40 of 100 rows cannot be read"):
        prepared(tmp_path, rows)


@pytest.mark.parametrize(
    ("data", "policy", "said"),
    [
        ({"unpaired": ["x.jsonl"]}, {"algorithm": "ppo"}, "only policy.algorithm dpo"),
        ({"unpaired": ["x.jsonl"]}, {"algorithm": "dpo"}, "only policy.algorithm dpo"),
        ({}, {"algorithm": "dpo", "loss": "kto", "train_on": "unpaired"}, "data.unpaired"),
        ({}, {"algorithm": "dpo", "train_on": "both"}, "leave train_on out"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(tmp_path, data, policy, said):
    settings = make_config(tmp_path).model_dump(mode="json")
    settings["data"] |= data
    with pytest.raises(ValidationError, match=said):
        PipelineConfig.model_validate(settings | {"policy": policy})


def test_without_pairs_the_message_says_what_else_is_needed(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("model: {base: unused}\ndata: {unpaired: [x.jsonl]}\n")
    with pytest.raises(ConfigError, match="reward model, the judge and the gates"):
        load_preparation(path)


def test_a_settings_file_names_paths_or_sections(tmp_path):
    path = tmp_path / "settings.yaml"
    files = "[x.jsonl, {path: y.csv, columns: {label: thumb}}]"
    path.write_text(
        "model: {base: unused}\n"
        f"data: {{preferences: {{path: p.jsonl}}, unpaired: {files}, gates: []}}\n"
    )
    plain, renamed = load_preparation(path).data.unpaired_files
    assert (str(plain.path), plain.columns) == ("x.jsonl", {})
    assert (str(renamed.path), renamed.columns) == ("y.csv", {"label": "thumb"})


def test_a_file_of_one_label_is_refused_where_it_is_all_there_is(tmp_path, caplog):
    rows = [{**row, "label": True} for row in labelled()]
    refused = pytest.raises(DataError, match=r"labels.jsonl: \d+ good and 0 bad labels to train on")
    with caplog.at_level(logging.WARNING), refused:
        prepared(tmp_path, rows, train_on="unpaired")
    assert "labels: all 200 labels are good; KTO learns from both" in caplog.text
    assert prepared(tmp_path, rows, train_on="both").unpaired_train.num_rows > 100


def test_a_file_that_grows_while_it_is_read_is_taken_as_far_as_it_was_read(tmp_path, monkeypatch):
    path, rows = tmp_path / "labels.jsonl", labelled()
    read = build.read_unpaired

    def growing(files, seen=None):
        yield from read(files, seen)
        with path.open("a") as stream:
            stream.write(json.dumps(labelled(1, path.stat().st_size)[0]) + "\n")

    monkeypatch.setattr(build, "read_unpaired", growing)
    found = examples(prepared(tmp_path, rows))
    assert len(found) >= 200
    assert len(found) == len({row.prompt for row in found})
