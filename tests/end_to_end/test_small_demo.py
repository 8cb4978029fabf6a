"""The shipped demo on smaller settings, as a user runs it, and the commands that look at it."""

import json

import pytest

from tests.end_to_end.conftest import SMALL, small_settings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("small_demo")]

STAGES = ("sft", "reward", "judge", "policy")


def test_it_ends_with_a_promoted_model_and_says_why(small_run):
    result = small_run.read("first.json")
    assert result["verdict"] == "PROMOTE"
    assert result["decided_by"] == "evaluate"
    assert "policy/win_rate" in " ".join(result["reasons"])
    assert {timing["stage"] for timing in result["timings"]} >= {"prepare", *STAGES, "promote"}


def test_the_judge_decides_and_not_the_reward_model(small_run):
    result = small_run.read("first.json")
    models = {stage: result["stages"][stage]["model"]["sha256"] for stage in ("reward", "judge")}
    assert models["reward"] != models["judge"]
    splits = result["splits"]
    assert splits["judge_train"]["sha256"] != splits["reward_train"]["sha256"]
    prompts = [
        {
            json.dumps(json.loads(line)["prompt"])
            for line in (small_run.path / splits[name]["path"]).read_text().splitlines()
        }
        for name in ("reward_train", "judge_train", "prompts_heldout")
    ]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]


def test_lineage_leads_from_the_champion_to_the_data(small_run):
    small_run.rlhf("lineage", "models:/rlhf-policy@champion", "--json", "lineage.json")
    text = (small_run.path / "lineage.json").read_text()
    result = small_run.read("first.json")
    for stage in ("sft", "reward", "judge"):
        assert result["stages"][stage]["model"]["sha256"] in text
    assert result["splits"]["sha256"] in text


def test_sample_answers_and_repeats_itself_under_a_seed(small_run):
    ask = ("sample", "models:/rlhf-policy@champion", "When does the castle open?", "--seed", "3")
    first, second = small_run.rlhf(*ask), small_run.rlhf(*ask)
    assert first.stdout.strip()
    assert first.stdout == second.stdout


def test_a_finished_run_is_not_repeated(small_run):
    small_run.rlhf(
        "run", "configs/demo.yaml", "--run-id", "first", "--json", "again.json", *small_settings()
    )
    before, after = small_run.read("first.json"), small_run.read("again.json")
    assert after["policy"] == before["policy"]
    reused = {timing["stage"] for timing in after["timings"] if timing["reused"]}
    assert reused >= set(STAGES)


@pytest.mark.nightly  # at every change test_faults has two folders that end in the same weights
def test_the_same_settings_give_the_same_weights(small_run):
    """The second is of another project: beside its equal, the champion, it would be held back."""
    small_run.rlhf(
        "run",
        "configs/demo.yaml",
        "--run-id",
        "again",
        "--json",
        "second.json",
        *small_settings(project="demo"),
    )
    first, second = small_run.read("first.json"), small_run.read("second.json")
    assert first["policy"]["sha256"] == second["policy"]["sha256"]
    for stage in ("sft", "reward", "judge"):
        assert (
            first["stages"][stage]["model"]["sha256"] == second["stages"][stage]["model"]["sha256"]
        )


def test_a_reward_model_that_fails_its_gate_stops_the_run_before_ppo(small_run):
    strict = "[{metric: reward/heldout_accuracy, at_least: 0.999, min_samples: 20}]"
    done = small_run.rlhf(
        "run",
        "configs/demo.yaml",
        "--run-id",
        "strict",
        "--json",
        "strict.json",
        *small_settings(**{"gates.reward": strict}),
        check=1,
    )
    result = small_run.read("strict.json")
    assert result["verdict"] == "REJECT"
    assert result["decided_by"] == "reward"
    assert result["policy"] is None
    assert not (small_run.path / "runs/strict/policy").exists()
    assert "reward/heldout_accuracy" in done.stdout


def test_a_stage_runs_alone_with_inputs_by_reference(small_run):
    gates = SMALL["gates.sft"]
    small_run.rlhf(
        "reward",
        "configs/demo.yaml",
        "--sft",
        "models:/rlhf-sft/1",
        "--role",
        "judge",
        "--run-id",
        "alone",
        "--new-run",
        "--json",
        "alone.json",
        *small_settings(**{"gates.sft": gates}),
    )
    alone, first = small_run.read("alone.json"), small_run.read("first.json")
    assert alone["model"]["sha256"] == first["stages"]["judge"]["model"]["sha256"]


def test_rollback_without_a_champion_is_one_clear_line(workspace):
    done = workspace.rlhf("rollback", check=2)
    assert done.stderr.count("error:") == 1


def test_the_report_is_one_page_that_asks_for_nothing_else(small_run):
    small_run.rlhf("report", "first")
    pages = list((small_run.path / "runs/first").rglob("*.html"))
    assert len(pages) == 1
    text = pages[0].read_text()
    assert "PROMOTE" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert 'src="http' not in text
