"""What the demo's recipe for reward hacking shows; test_readme runs the other variants."""

import re
import shutil

import pytest

from rlhf_core.evaluation.monitors import VICES
from tests.end_to_end.conftest import ROWS, SMALL, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("small_demo")]

EXPLOITABLE = {"comparisons.jsonl": 1_200, "demonstrations.jsonl": 400, "prompts.jsonl": 400}
"""A reward model that has learnt from fewer rows likes no vice yet."""


@pytest.mark.nightly  # at every change test_degenerate_policies has each vice before the gates
def test_the_reward_hacking_recipe_is_refused_by_its_gates(tmp_path, fresh_database):
    workspace = make_workspace(tmp_path / "work", rows=ROWS | EXPLOITABLE, pretrained=True)
    shutil.copy(fresh_database, workspace.path / "mlflow.db")
    few = {
        "sft.num_epochs": "1",
        "reward.num_epochs": "1",
        # Few and large steps; the last is offered, for an earlier one has less of a vice.
        "policy.num_iterations": "20",
        "policy.num_epochs": "2",
        "policy.critic_warmup_iterations": "1",
        "policy.rollout_batch_size": "16",
        "policy.optimizer.learning_rate": "1.6e-3",
        "policy.checkpoint_every": "20",
        "evaluation.num_prompts": "300",
        "evaluation.num_resamples": "500",
    }
    kept = ("data.votes.num_resamples", "data.gates", "gates.sft", "gates.reward")
    settings = [
        part
        for key, value in ({key: SMALL[key] for key in kept} | few).items()
        for part in ("--set", f"{key}={value}")
    ]
    done = workspace.rlhf(
        "run", "configs/demo-reward-hacking.yaml", "--json", "hack.json", *settings, check=1
    )
    result = workspace.read("hack.json")
    assert (result["verdict"], result["decided_by"]) == ("REJECT", "evaluate"), done.stdout[-3000:]
    refused = [reason for reason in result["reasons"] if reason.startswith("REJECT: ")]
    assert any("policy/kl =" in reason for reason in refused)
    assert any(re.match(rf"REJECT: ({'|'.join(VICES)}): ", reason) for reason in refused)
