"""Gates on the dataset itself: what is measured, what is asked of it, and what a refusal leaves."""

import json
from pathlib import Path

import pytest

from rlhf_core.config import PipelineConfig
from rlhf_core.config.data import DATA_CONFIDENCE, DATA_METRICS
from rlhf_core.errors import DataError, MissingMetricError
from rlhf_core.schema import Message, Prompt
from rlhf_core.stages.evaluation.held_out import warn_of_too_few
from rlhf_core.stages.preparation.dataset import read_splits
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import sha256_of, write_records
from tests.stages.prepare_helpers import comparisons, make_config, write


@pytest.fixture
def config(tmp_path) -> PipelineConfig:
    write(tmp_path / "pairs.jsonl", comparisons())
    return make_config(tmp_path)


def gate(metric: str, **bound) -> dict:
    return {"metric": metric, "min_samples": 50, **bound}


def test_data_gates_pass_and_stand_in_the_report(config, tmp_path):
    gates = [
        gate("data/krippendorff_alpha", at_least=-0.99),
        gate("data/length_auc", at_most=0.99),
        gate("data/first_win_fraction", at_least=0.5),
    ]
    report = json.loads(prepare_data(make_config(tmp_path, gates=gates)).report.read_text())
    assert [result["verdict"] for result in report["gates"]] == ["PROMOTE"] * 3


@pytest.mark.parametrize(
    ("refused", "verdict"),
    [
        (gate("data/krippendorff_alpha", at_least=0.9), "REJECT"),
        (gate("data/first_win_fraction", at_most=0.6), "REJECT"),
        (gate("data/length_win_fraction", at_least=0.01, min_samples=9_999), "HOLD"),
    ],
)
def test_a_data_gate_that_does_not_pass_stops_and_keeps_the_old(
    prepared, tmp_path, refused, verdict
):
    config, before = prepared
    with pytest.raises(DataError) as raised:
        prepare_data(make_config(tmp_path, gates=[refused]))
    message = str(raised.value)
    assert f"the data gates refuse this dataset. {verdict}: {refused['metric']} = " in message
    kept = json.loads(Path(message.rsplit("See ", 1)[1]).read_text())
    assert kept["gates"][0]["verdict"] == verdict
    assert read_splits(config.data.output).sha256 == before.sha256


def test_a_gate_on_what_this_data_does_not_show_is_refused_and_all_is_kept(config, tmp_path):
    """No two sources here, so nothing was measured about them."""
    gates = [gate("data/source_label_auc", at_most=0.6), gate("data/length_auc", at_most=0.99)]
    with pytest.raises(MissingMetricError, match="not measured on this data: data/source_label"):
        prepare_data(make_config(tmp_path, gates=gates))
    kept = json.loads((tmp_path / "prepared-failed" / "report.json").read_text())
    assert "data/length_auc" in kept["measurements"]["metrics"]
    assert [result["gate"] for result in kept["gates"]] == ["data/length_auc"]
    assert (tmp_path / "prepared-failed" / "quarantine.parquet").is_file()


def test_prompts_unlike_production_are_told_with_their_words(config, tmp_path):
    production = [{"prompt": f"cook me soup number {i}"} for i in range(100)]
    write(tmp_path / "production.jsonl", production)
    prompts = {"production_path": str(tmp_path / "production.jsonl")}
    gates = [gate("data/production_shift_auc", at_most=0.8)]
    splits = prepare_data(make_config(tmp_path, prompts=prompts))
    found = json.loads(splits.report.read_text())["measurements"]
    assert found["metrics"]["data/production_shift_auc"]["low"] > 0.9
    assert set(found["metrics"]) <= set(DATA_METRICS)
    assert {metric["confidence"] for metric in found["metrics"].values()} == {DATA_CONFIDENCE}
    assert "soup" in found["shift_words"]["production_shift_auc"]["other"]
    with pytest.raises(DataError, match="REJECT: data/production_shift_auc"):
        prepare_data(make_config(tmp_path, prompts=prompts, gates=gates))


def test_gates_that_ask_for_more_than_is_held_out_are_told(prepared, caplog):
    config, splits = prepared
    promotion = config.promotion.model_copy(update={"min_samples": 30})
    config = config.model_copy(update={"promotion": promotion})
    warn_of_too_few(config, splits)
    assert not caplog.messages
    asked = {"metric": "policy/win_rate", "at_least": 0.5, "min_samples": 290}
    gates = config.gates.model_validate({**config.gates.model_dump(), "policy": [asked]})
    few = config.model_copy(update={"gates": gates})
    warn_of_too_few(few, splits)
    held_out = splits.prompts_heldout.num_rows
    assert held_out < 290
    said = f"of policy ask for 290 samples, and {held_out} rows are held out for them"
    assert any(said in line and "cannot be PROMOTE" in line for line in caplog.messages)


def test_what_the_champion_asks_for_holds_back_only_who_would_follow_one(prepared, caplog):
    config, splits = prepared
    promotion = config.promotion.model_copy(update={"min_samples": 290})
    warn_of_too_few(config.model_copy(update={"promotion": promotion}), splits)
    (said,) = caplog.messages
    assert "1 gates of policy ask for 290 samples" in said
    assert "no policy can follow a champion" in said
    assert said.endswith("(promotion.min_samples)")
    assert "cannot be PROMOTE" not in said


def test_topics_and_slices_are_what_gates_count(prepared, tmp_path, caplog):
    config, splits = prepared
    kinds = [{"style": "terse" if i % 4 else "polite", "town": f"{i % 8}"} for i in range(40)]
    prompts = [
        Prompt(prompt_id=f"p{i}", prompt=(Message(role="user", content=f"{i}?"),), tags=tags)
        for i, tags in enumerate(kinds)
    ]
    path = tmp_path / "held-out.jsonl"
    facts = {"path": path, "num_rows": write_records(path, prompts), "sha256": sha256_of(path)}
    held_out = splits.prompts_heldout.model_copy(update=facts)
    splits = splits.model_copy(update={"prompts_heldout": held_out})
    win = {"metric": "policy/win_rate", "at_least": 0.5, "min_samples": 20}
    shared = {"metric": "policy/judge_error_correlation", "at_most": 0.7, "min_samples": 20}
    gates = {"policy": [win, shared, {**win, "slice": "style=polite"}], "reward_hacking": []}

    def told(topics: str | None) -> list[str]:
        caplog.clear()
        evaluation = config.evaluation.model_copy(update={"topics": topics})
        promotion = config.promotion.model_copy(update={"min_samples": 8})
        asked = {
            "gates": config.gates.model_validate({**config.gates.model_dump(), **gates}),
            "evaluation": evaluation,
            "promotion": promotion,
        }
        warn_of_too_few(config.model_copy(update=asked), splits)
        return [line.partition(" are held out")[0] for line in caplog.messages]

    asked = "too_few_held_out: 1 gates of policy ask for 20 samples, and"
    assert told(None) == [f"{asked} 10 rows of style=polite"]
    assert told("town") == [f"{asked} 8 topics (town)", f"{asked} 2 topics (town) of style=polite"]
    assert told("near-duplicates") == [f"{asked} 10 topics (near-duplicates) of style=polite"]


def test_slices_by_length_and_of_pairs_are_counted_before_training(prepared, tmp_path, caplog):
    config, splits = prepared
    sizes = [1] * 5 + [9] * 5 + [99] * 20  # equal lengths share a third: none is long
    prompts = [
        Prompt(prompt_id=f"p{i}", prompt=(Message(role="user", content="a" * size),))
        for i, size in enumerate(sizes)
    ]
    path = tmp_path / "held-out.jsonl"
    facts = {"path": path, "num_rows": write_records(path, prompts), "sha256": sha256_of(path)}
    held_out = splits.prompts_heldout.model_copy(update=facts)
    splits = splits.model_copy(update={"prompts_heldout": held_out})
    win = {"metric": "policy/win_rate", "at_least": 0.5, "min_samples": 12}
    right = {"metric": "reward/heldout_accuracy", "at_least": 0.5, "min_samples": 2}
    gates = {
        "policy": [{**win, "slice": "prompt_length=short"}, {**win, "slice": "prompt_length=long"}],
        "reward": [{**right, "slice": "agreement=below 0.5"}, {**right, "slice": "chosen=longer"}],
        "reward_hacking": [],
    }

    def told(num_prompts: int) -> list[str]:
        caplog.clear()
        asked = {
            "gates": config.gates.model_validate({**config.gates.model_dump(), **gates}),
            "evaluation": config.evaluation.model_copy(update={"num_prompts": num_prompts}),
            "promotion": config.promotion.model_copy(update={"min_samples": 1}),
        }
        warn_of_too_few(config.model_copy(update=asked), splits)
        return [line.partition("samples, and ")[2].partition(" are")[0] for line in caplog.messages]

    pairs = "0 rows of agreement=below 0.5"
    thirds = ["10 rows of prompt_length=short", "0 rows of prompt_length=long"]
    assert told(1_000) == [pairs, pairs, *thirds]
    assert told(15)[-2:] == ["5 rows of prompt_length=short", thirds[1]]
