"""Real human preferences and a real pretrained model through the whole pipeline, a few steps."""

import json

import pytest

pytestmark = pytest.mark.nightly

FEW_STEPS = {
    "model.max_length": "160",
    "sft.batch_size": "64",
    "policy.num_iterations": "3",
    "policy.rollout_batch_size": "16",
    "policy.critic_warmup_iterations": "1",
    "policy.max_new_tokens": "16",
    "evaluation.num_prompts": "40",
    "evaluation.num_resamples": "200",
    "gates.sft": "[{metric: sft/heldout_nll, at_most: 9.0, min_samples: 20}]",
    "gates.reward": "[{metric: reward/heldout_accuracy, at_least: 0.1, min_samples: 20}]",
}


def test_published_hh_transcripts_and_a_story_model_reach_a_decision(workspace, shared_data):
    settings = FEW_STEPS | {
        "model.base": str(shared_data / "models/stories260k"),
        "data.preferences.path": str(shared_data / "hh/helpful-base.test.jsonl.gz"),
    }
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = workspace.rlhf(
        "run", "configs/stories-hh.yaml", "--json", "result.json", *arguments, check=None
    )
    assert done.returncode in (0, 1), done.stderr[-4000:]
    result = json.loads((workspace.path / "result.json").read_text())
    assert result["verdict"] in ("PROMOTE", "HOLD", "REJECT")
    assert result["decided_by"] in ("sft", "reward", "judge", "evaluate")
    assert result["reasons"]
    assert (done.returncode == 0) == (result["verdict"] == "PROMOTE")
