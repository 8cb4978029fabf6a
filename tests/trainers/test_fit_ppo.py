"""PPO as a whole: it learns, it reports, it stops when something is wrong, it repeats itself."""

import shutil
from contextlib import suppress
from functools import cache

import pytest
import torch

from rlhf_core.errors import CheckpointError
from rlhf_core.models import load_causal, load_scalar
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.ppo import fit_ppo
from tests.trainers.ppo_toys import (
    VARIANTS,
    reward_directory,
    toy_data,
    toy_models,
    toy_settings,
    train_ppo,
)
from tests.trainers.toys import ListTracker


@pytest.fixture(scope="module")
def whole(saved_once, tmp_path_factory):
    """Train a variant to its end, once for all tests: its folder, its log and what it returned."""

    @cache
    def train(variant):
        folder, tracker = tmp_path_factory.mktemp(variant), ListTracker()
        torch.manual_seed(0)
        return folder, tracker, train_ppo(saved_once, folder, tracker, **VARIANTS[variant])

    return train


def policy_weights(models):
    return {name: p.detach().clone() for name, p in models.policy.named_parameters()}


def test_reward_rises_and_the_reports_are_complete(causal_directory, tmp_path):
    tracker = ListTracker()
    summary, _, _ = train_ppo(
        causal_directory, tmp_path, tracker, num_iterations=14, rollout_batch_size=32, kl_coef=0.01
    )
    scores = tracker.series("policy/score_mean")
    assert sum(scores[-3:]) / 3 > scores[0] + 1.0
    assert tracker.series("policy/eos_fraction")[-1] > tracker.series("policy/eos_fraction")[0]
    assert [step for step, _ in tracker.rows] == list(range(1, 15))
    assert abs(tracker.series("policy/kl")[0]) < 1e-5
    assert tracker.series("policy/kl")[-1] > 0.1
    assert summary.metrics["policy/score_mean"] == scores[-1]
    assert summary.metrics["policy/score_mean_at_start"] == scores[0]
    expected = (
        "score_mean score_std reward_model_score kl kl_per_token kl_coef entropy clip_fraction "
        "approx_kl policy_loss value_loss value_clip_fraction explained_variance return_std "
        "response_length eos_fraction learning_rate grad_norm value_grad_norm first_ratio_error "
        "logprob_mismatch response_tokens_per_second"
    )
    assert {f"policy/{name}" for name in expected.split()} <= set(tracker.rows[-1][1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_first_ratio_is_one_in_every_iteration(variant, whole):
    _, tracker, _ = whole(variant)
    errors = tracker.series("policy/first_ratio_error")
    settings = toy_settings(**VARIANTS[variant])
    assert len(errors) == settings.num_iterations - settings.warmup_iterations
    assert max(errors) < 1e-4
    assert max(tracker.series("policy/logprob_mismatch")) < 1.0001


OFTEN = ("default", "rloo-adaptive-kl-and-ptx", "grpo-and-lora")
"""Between them they keep everything that a checkpoint holds; the others are for the night."""


@pytest.mark.parametrize(
    "variant",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.nightly) for name in VARIANTS],
)
def test_same_seed_same_weights_and_crashes_do_not_change_them(
    variant, whole, causal_directory, tmp_path
):
    _, tracker, expected = whole(variant)
    for at_step in (1, 3, 4, 6):
        with pytest.raises(Crash):
            train_ppo(causal_directory, tmp_path, CrashingTracker(at_step), **VARIANTS[variant])
        torch.rand(3)
    rest = ListTracker()
    again = train_ppo(causal_directory, tmp_path, rest, **VARIANTS[variant])
    assert again[2] == expected[2]
    assert again[0] == expected[0]
    timed = ("seconds", "per_second")
    for (step, metrics), (other_step, other) in zip(rest.rows, tracker.rows[-2:], strict=True):
        assert step == other_step
        assert {n: v for n, v in metrics.items() if not any(t in n for t in timed)} == {
            n: v for n, v in other.items() if not any(t in n for t in timed)
        }


class Crash(Exception):
    """Stands for the process dying."""


class CrashingTracker(ListTracker):
    def __init__(self, at_step):
        super().__init__()
        self.at_step = at_step

    def log_metrics(self, metrics, step):
        if step == self.at_step:
            raise Crash
        super().log_metrics(metrics, step)


@pytest.fixture
def finished(whole, tmp_path):
    """The folder of a finished run, of the test's own, and what the run returned."""
    folder, _, returned = whole("default")
    return shutil.copytree(folder, tmp_path / "finished"), returned


def test_a_finished_run_is_not_trained_again(causal_directory, finished):
    folder, first = finished
    tracker = ListTracker()
    again = train_ppo(causal_directory, folder, tracker)
    assert not tracker.rows
    assert again[0] == first[0]
    assert again[2] == first[2]


def test_a_checkpoint_of_another_run_is_refused(causal_directory, finished):
    with pytest.raises(CheckpointError, match="another run"):
        train_ppo(causal_directory, finished[0], kl_coef=0.2)


def test_an_incomplete_checkpoint_is_skipped(causal_directory, finished):
    folder, (_, _, expected) = finished
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    (newest / "tensors.safetensors").write_bytes(b"torn")
    tracker = ListTracker()
    assert train_ppo(causal_directory, folder, tracker)[2] == expected
    assert tracker.rows, "from the checkpoint before"


def test_checkpoint_hook_sees_every_checkpoint_and_the_end(causal_directory, tmp_path):
    seen = []
    fit_ppo(
        toy_models(causal_directory),
        toy_data(),
        settings=toy_settings(num_iterations=5),
        run=TrainingRun(0, ListTracker(), CheckpointStore(tmp_path / "checkpoints")),
        on_checkpoint=seen.append,
    )
    assert seen == [0, 2, 4, 5]


def test_the_hook_at_the_end_is_made_up_for_when_the_run_died_in_it(causal_directory, tmp_path):
    seen = []

    def die(iteration):
        if iteration == 5:
            raise Crash

    for hook in (die, seen.append):
        with suppress(Crash):
            fit_ppo(
                toy_models(causal_directory),
                toy_data(),
                settings=toy_settings(num_iterations=5),
                run=TrainingRun(0, ListTracker(), CheckpointStore(tmp_path / "checkpoints")),
                on_checkpoint=hook,
            )
    assert seen == [5]


def test_scores_are_scaled_by_all_that_were_seen_not_by_the_last_batch(causal_directory, tmp_path):
    tracker = ListTracker()
    train_ppo(causal_directory, tmp_path, tracker, scale_scores=True, missing_eos_penalty=None)
    deviations = [
        metrics["policy/reward_model_score"] / metrics["policy/score_mean"]
        for _, metrics in tracker.rows
    ]
    last = [metrics["policy/score_std"] for _, metrics in tracker.rows]
    assert len(set(deviations)) == len(deviations)
    # In units of its own batch alone every batch would have a spread of 1.
    assert last[0] == pytest.approx(1.0, rel=1e-4)
    assert max(abs(spread - 1.0) for spread in last[1:]) > 0.01


def test_demonstrations_are_mixed_into_every_policy_step(causal_directory, tmp_path):
    tracker = ListTracker()
    train_ppo(causal_directory, tmp_path, tracker, ptx_coef=0.5)
    assert len(tracker.series("policy/ptx_loss")) == 5  # all but the critic's warm-up


def test_critic_warm_up_trains_the_value_model_alone(causal_directory, tmp_path):
    models = toy_models(causal_directory)
    policy, values = policy_weights(models), models.value_model.score.weight.detach().clone()

    class Watch(ListTracker):
        def log_metrics(self, metrics, step):
            super().log_metrics(metrics, step)
            same = all(torch.equal(p, policy[n]) for n, p in models.policy.named_parameters())
            assert same == (step <= 2)
            assert not torch.equal(models.value_model.score.weight, values)

    tracker = Watch()
    train_ppo(
        causal_directory,
        tmp_path,
        tracker,
        models,
        num_iterations=4,
        critic_warmup_iterations=2,
    )
    assert ["policy/policy_loss" in metrics for _, metrics in tracker.rows] == [False] * 2 + [
        True
    ] * 2


def test_frozen_models_stay_as_they_are(causal_directory, whole):
    _, _, (_, models, _) = whole("default")
    fresh = load_causal(causal_directory)
    rewards = load_scalar(reward_directory(causal_directory))
    for trained, original in ((models.reference, fresh), (models.reward_model, rewards)):
        for (name, now), (_, before) in zip(
            trained.named_parameters(), original.named_parameters(), strict=True
        ):
            assert torch.equal(now, before), name


def test_learning_rate_falls_linearly_to_zero(causal_directory, tmp_path):
    tracker = ListTracker()
    train_ppo(
        causal_directory,
        tmp_path,
        tracker,
        critic_warmup_iterations=0,
        num_epochs=1,
        num_minibatches=1,
    )
    rates = tracker.series("policy/learning_rate")
    torch.testing.assert_close(
        torch.tensor(rates), torch.tensor([1e-2 * (1 - step / 6) for step in range(6)])
    )
