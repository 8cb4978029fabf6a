"""PPO, RLOO and GRPO on responses that a vLLM server samples."""

from dataclasses import replace

import pytest
import torch

from rlhf_core.adapters.endpoints.vllm_sampler import open_sampler
from rlhf_core.config import VllmRolloutsConfig
from rlhf_core.errors import CheckpointError, DivergedError, RolloutError
from rlhf_core.functional.ppo import truncated_importance_weights
from rlhf_core.models import save_model
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.ppo import fit_ppo
from tests.models.conftest import FakeTokenizer
from tests.rollout.vllm_server import serving
from tests.trainers.ppo_toys import (
    GRPO,
    ONE_TRUNK,
    RLOO,
    toy_data,
    toy_models,
    toy_settings,
    train_ppo,
)
from tests.trainers.toys import ListTracker


@pytest.fixture
def server(causal_directory):
    with serving(causal_directory) as server:
        yield server


def trained(server, causal, work, tracker=None, *, rollouts=None, **changes):
    changes = {"num_iterations": 3, "checkpoint_every": 1, **changes}
    rollouts = VllmRolloutsConfig(
        **{
            "engine": "vllm",
            "url": server.url,
            "weights": work / "weights",
            "timeout_seconds": 60.0,
            "patience_seconds": 0.5,
            **(rollouts or {}),
        }
    )
    settings = toy_settings(rollouts=rollouts, **changes)
    models = toy_models(causal, value_model=settings.needs_value_model)
    tracker = tracker or ListTracker()
    with open_sampler(rollouts) as sampler:
        fit_ppo(
            models,
            replace(toy_data(), sampler=sampler),
            settings=settings,
            run=TrainingRun(0, tracker, CheckpointStore(work / "checkpoints"), None),
        )
    return tracker.rows, save_model(models.policy, FakeTokenizer(), work / "model")


@pytest.mark.parametrize(
    "changes", [{}, ONE_TRUNK, RLOO, GRPO], ids=["ppo", "one-trunk", "rloo", "grpo"]
)
def test_a_policy_learns_from_an_engines_responses(changes, server, causal_directory, tmp_path):
    rows, _ = trained(server, causal_directory, tmp_path, **changes)
    metrics = [row for _, row in rows if "policy/engine_logprob_difference" in row]
    assert len(metrics) == 3
    for row in metrics:
        most = row["policy/engine_logprob_difference_max"]
        assert 0 <= row["policy/engine_logprob_difference"] <= most < 1e-4
        assert row["policy/truncated_weight_fraction"] == 0
    moved = 3 if "advantages" in changes else 2  # the critic's warm-up leaves the policy alone
    assert server.asked.count("/collective_rpc") == moved + 1


class Dying(ListTracker):
    """The server dies for good after the second iteration."""

    def __init__(self, server):
        super().__init__()
        self.server = server

    def log_metrics(self, metrics, step):
        super().log_metrics(metrics, step)
        if step == 2:
            self.server.faults["/v1/completions"] = lambda *_: (None, None)


def test_a_dead_server_ends_in_one_line_and_the_run_goes_on_later(
    server, causal_directory, tmp_path
):
    _, expected = trained(server, causal_directory, tmp_path / "whole")
    with pytest.raises(RolloutError, match=r"^policy\.rollouts: .*Remote.*patience_seconds 0\.5"):
        trained(server, causal_directory, tmp_path / "cut", Dying(server))
    server.restart()
    server.faults.clear()
    rows, digest = trained(server, causal_directory, tmp_path / "cut")
    assert rows[0][0] == 2  # the first iteration is not repeated
    assert digest == expected


def test_the_address_is_no_part_of_a_run_and_the_engine_is(server, causal_directory, tmp_path):
    trained(server, causal_directory, tmp_path, num_iterations=2)
    moved = {"weights": tmp_path / "elsewhere", "requests_at_once": 3}
    rows, _ = trained(server, causal_directory, tmp_path, rollouts=moved, num_iterations=2)
    assert not rows  # finished: nothing is left to do
    with pytest.raises(CheckpointError):
        train_ppo(causal_directory, tmp_path, num_iterations=2, checkpoint_every=1)


def reports(shift):
    """A server whose log-probabilities are off by so much."""

    def fault(server, body):
        status, content = server.post_v1_completions(body)
        if status == 200:
            said = content["choices"][0]["logprobs"]
            said["token_logprobs"] = [one + shift for one in said["token_logprobs"]]
        return status, content

    return fault


def test_a_difference_is_weighed_and_bounded(server, causal_directory, tmp_path):
    server.faults["/v1/completions"] = reports(-1.0)
    wide = {"max_logprob_difference": 2.0, "max_importance_weight": 2.0}
    rows, _ = trained(server, causal_directory, tmp_path / "wide", rollouts=wide, **RLOO)
    metrics = [row for _, row in rows if "policy/engine_logprob_difference" in row]
    assert metrics[0]["policy/engine_logprob_difference"] == pytest.approx(1.0, abs=1e-4)
    assert metrics[0]["policy/truncated_weight_fraction"] == 1.0  # e is above 2
    with pytest.raises(DivergedError, match=r"differ by 1 nats .*max_logprob_difference 0\.1"):
        trained(server, causal_directory, tmp_path / "narrow", **RLOO)


def test_weights_by_hand():
    ours, theirs = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.0, -4.0, -2.0])
    found = truncated_importance_weights(ours, theirs, most=2.0)
    assert found.tolist() == pytest.approx([1.0, 2.0, 0.36787944])
