"""The benchmark of all algorithms: settings that load, a table with intervals, work kept."""

import numpy as np
import pytest

from benchmarks.algorithms import METHODS, Outcome, settings_of, table
from benchmarks.resumable import kept, require_same_settings
from rlhf_core.schema import ModelRef, StageResult


def test_every_method_has_settings_of_its_own():
    changes = {"evaluation.num_prompts": "100"}
    found = [settings_of(method, 2, changes) for method in METHODS]
    assert {(config.seed, config.evaluation.num_prompts) for config in found} == {(2, 100)}
    told = {config.model_dump_json(include={"policy", "evaluation"}) for config in found}
    assert len(told) == len(METHODS)


def outcome(wins, kl, seconds=120.0):
    won = np.array([1.0] * wins + [0.0] * (100 - wins))
    return Outcome(gold=won, judge=1.0 - won, lengths=np.full(100, 12.0), kl=kl, seconds=seconds)


def test_the_table_has_intervals_and_says_what_ended_by_itself():
    found = {
        "DPO": [outcome(60, 1.0), outcome(70, 2.0)],
        "PPO": [outcome(50, 3.0, None)],
        "IPO": [],
    }
    lines = table(found, {"IPO": ["seed 0 ended by itself: KL"]}).splitlines()
    assert len(lines) == 6
    name, seeds, gold, judge, kl, tokens, minutes = (
        cell.strip() for cell in lines[2].strip("|").split("|")
    )
    assert (name, seeds, tokens) == ("DPO", "2", "12.0 (12.0 to 12.0)")
    assert gold.startswith("0.650 [0.5")
    assert judge.startswith("0.350 [0.2")
    assert (kl, minutes) == ("1.50 (1.00 to 2.00)", "2.0 (2.0 to 2.0)")
    assert "| 3.00 | 12.0 |  |" in lines[3]
    assert lines[-1] == "IPO: seed 0 ended by itself: KL"


def test_a_stage_that_ended_is_not_done_again_and_other_settings_are_refused(tmp_path):
    model = ModelRef(
        name="m",
        version="1",
        uri="models:/m/1",
        path=tmp_path,
        sha256="-",
        kind="causal",
        run_id="",
    )
    made = []

    def make(context):
        made.append(context.run_id)
        return StageResult.judged_later("policy", model, seconds=60.0, tracking_url="")

    folder = tmp_path / "KTO" / "seed-0"
    require_same_settings(folder, settings_of("KTO", 0, {}))
    first = kept(folder, "policy", make)
    assert kept(folder, "policy", make) == first
    assert made == ["KTO-seed-0"]
    with pytest.raises(SystemExit, match="results are of other settings"):
        require_same_settings(folder, settings_of("KTO", 1, {}))
