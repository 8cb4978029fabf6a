"""Gates on the dataset itself: what is measured, what is asked of it, and what a refusal leaves."""

import json
from pathlib import Path

import pytest

from rlhf_core.config import PipelineConfig
from rlhf_core.config.data import DATA_CONFIDENCE, DATA_METRICS
from rlhf_core.errors import DataError, MissingMetricError
from rlhf_core.stages.preparation.dataset import read_splits
from rlhf_core.stages.prepare import prepare_data
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
