"""RLOO and GRPO: the policy learns from groups of responses, and there is no critic anywhere."""

import statistics
from typing import get_args

import pytest
import torch

from rlhf_core.config import KlWatchConfig, OptimizerConfig, PpoConfig
from rlhf_core.errors import ConfigError
from rlhf_core.functional.advantages import GROUP_ADVANTAGES, GROUP_EPS
from rlhf_core.trainers.ppo import accumulate_policy_gradient, prepare_experience
from rlhf_core.trainers.ppo_watch import PpoState
from tests.trainers.ppo_toys import DR_GRPO, GRPO, RLOO, toy_models, train_ppo
from tests.trainers.test_fit_ppo import Crash, CrashingTracker, policy_weights
from tests.trainers.test_ppo_update import (
    PaddedPpo,
    gradients,
    largest_relative_gap,
    learner_for,
    make_update,
    scored_rollout,
)
from tests.trainers.toys import ListTracker

CRITIC_FREE = {"rloo": RLOO, "grpo": GRPO, "dr_grpo": DR_GRPO}
KL_COEF = 0.3


def test_every_name_in_the_settings_has_its_function():
    names = set(get_args(PpoConfig.model_fields["advantages"].annotation)) - {"gae"}
    assert set(GROUP_ADVANTAGES) == names
    assert set(CRITIC_FREE) == names


def whole_returns(scored, scores, kl_coef):
    """Score less the weighted k1 of the whole response, one response at a time."""
    rows = zip(scored.old_logprobs, scored.ref_logprobs, scored.rollout.mask, scores, strict=True)
    return [float(score - kl_coef * (old - ref)[mask].sum()) for old, ref, mask, score in rows]


def advantages_by_definition(name, returns):
    advantages = []
    for start in range(0, len(returns), 4):
        group = returns[start : start + 4]
        for index, own in enumerate(group):
            others = group[:index] + group[index + 1 :]
            if name == "rloo":
                advantages.append(own - statistics.fmean(others))
            elif name == "dr_grpo":
                advantages.append(own - statistics.fmean(group))
            else:
                spread = statistics.pstdev(group) + GROUP_EPS
                advantages.append((own - statistics.fmean(group)) / spread)
    return advantages


@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("name", CRITIC_FREE)
def test_every_token_has_the_advantage_of_its_whole_response(name, placement, causal_directory):
    estimator = "k1" if placement == "reward" else "k3"
    changes = CRITIC_FREE[name] | {"kl_placement": placement, "kl_estimator": estimator}
    learner = learner_for(causal_directory, **changes)
    scored = scored_rollout(learner)
    assert scored.values is None
    assert not scored.rollout.finished.all()  # the penalty for missing EOS is among the scores
    experience, scores, _ = prepare_experience(scored, PpoState(kl_coef=KL_COEF), learner.settings)
    returns = whole_returns(scored, scores, KL_COEF if placement == "reward" else 0.0)
    mask = scored.rollout.mask
    for found, expected in (
        (experience.returns, returns),
        (experience.advantages, advantages_by_definition(name, returns)),
    ):
        spread = torch.tensor(expected)[:, None].expand(mask.shape)
        torch.testing.assert_close(found[mask], spread[mask], atol=1e-4, rtol=1e-4)
        assert not found[~mask].any()


def test_the_first_gradient_is_that_of_reinforce_with_the_leave_one_out_baseline(causal_directory):
    """- sum_i A_i grad log p(y_i | x_i) / tokens, by a plain padded model."""
    learner = learner_for(causal_directory, **RLOO)
    update = make_update(learner)
    rows = update.minibatches[0]
    accumulate_policy_gradient(learner.policy, update, rows)
    scored = scored_rollout(learner)
    _, scores, _ = prepare_experience(scored, PpoState(kl_coef=KL_COEF), learner.settings)
    advantages = advantages_by_definition("rloo", whole_returns(scored, scores, KL_COEF))
    plain = PaddedPpo(learner, causal_directory, scored.rollout, "right")
    logprobs = plain.logprobs(plain.policy, rows)
    loss = sum(
        -advantages[row] * tokens.sum() for row, tokens in zip(rows, logprobs, strict=True)
    ) / sum(map(len, logprobs))
    loss.backward()
    assert largest_relative_gap(gradients(learner.models.policy), gradients(plain.policy)) < 1e-4


@pytest.mark.parametrize("micro_batch_tokens", [4_096, 40])
@pytest.mark.parametrize("average", ["responses", "max_new_tokens"])
def test_the_loss_is_averaged_as_the_papers_have_it(average, micro_batch_tokens, causal_directory):
    """GRPO: (1 / R) sum_i (1 / n_i) sum_t loss; Dr. GRPO: (1 / (R L)) sum_i sum_t loss."""
    changes = {"loss_average": average, "micro_batch_tokens": micro_batch_tokens}
    learner = learner_for(causal_directory, **DR_GRPO, **changes)
    update = make_update(learner)
    rows = update.minibatches[0]
    seen = accumulate_policy_gradient(learner.policy, update, rows)
    scored = scored_rollout(learner)
    _, scores, _ = prepare_experience(scored, PpoState(kl_coef=KL_COEF), learner.settings)
    kl_in_reward = KL_COEF if learner.settings.kl_placement == "reward" else 0.0
    advantages = advantages_by_definition("dr_grpo", whole_returns(scored, scores, kl_in_reward))
    plain = PaddedPpo(learner, causal_directory, scored.rollout, "right")
    logprobs = plain.logprobs(plain.policy, rows)
    assert len({len(tokens) for tokens in logprobs}) > 1
    longest = learner.settings.max_new_tokens
    losses = []
    for row, tokens, ref in zip(rows, logprobs, plain.logprobs(plain.reference, rows), strict=True):
        loss = -advantages[row] * (tokens - tokens.detach()).exp()
        if learner.settings.kl_placement == "loss":
            gap = ref.detach() - tokens
            loss = loss + KL_COEF * (gap.exp() - gap - 1)  # k3
        losses.append(loss.sum() / (len(tokens) if average == "responses" else longest))
    whole = sum(losses) / len(rows)
    whole.backward()
    assert largest_relative_gap(gradients(learner.models.policy), gradients(plain.policy)) < 1e-4
    assert update.health(seen)["policy_loss"] == pytest.approx(whole.item(), abs=1e-5)
    # A process with fewer micro-batches than another goes through empty ones.
    assert update.token_weights((), rows).shape == (0,)


@pytest.mark.parametrize("whitened", [None, True])
def test_advantages_are_whitened_over_the_batch_only_where_that_is_asked_for(
    whitened, causal_directory
):
    learner = learner_for(causal_directory, **RLOO, whiten_advantages=whitened)
    experience = make_update(learner).experience
    deviation = experience.advantages[experience.rollout.mask].std(correction=0)
    assert (abs(float(deviation) - 1.0) < 1e-3) == bool(whitened)


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_reward_rises_and_nothing_speaks_of_values(name, causal_directory, tmp_path):
    tracker = ListTracker()
    summary, models, _ = train_ppo(
        causal_directory,
        tmp_path,
        tracker,
        num_iterations=10,
        rollout_batch_size=32,
        **CRITIC_FREE[name] | {"kl_coef": 0.01},
    )
    scores = tracker.series("policy/score_mean")
    assert sum(scores[-3:]) / 3 > scores[0] + 0.5
    assert summary.num_steps == 10 * 4  # no iteration is a warm-up
    assert models.value_model is None
    logged = set(tracker.rows[-1][1])
    assert not {metric for metric in logged if "value" in metric or "variance" in metric}
    for metric in ("group_return_std", "zero_advantage_fraction", "return_mean", "return_std"):
        assert len(tracker.series(f"policy/{metric}")) == 10
    learner = learner_for(causal_directory, **CRITIC_FREE[name])
    assert {tensor.partition("-")[0] for tensor in learner.tensors()} == {"policy"}
    assert learner.steps() == {"policy": 0}


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_groups_with_nothing_to_tell_apart_teach_nothing(name, causal_directory, tmp_path):
    models = toy_models(causal_directory, value_model=False)
    before = policy_weights(models)
    with torch.no_grad():
        models.reward_model.score.weight.zero_()
    tracker = ListTracker()
    train_ppo(
        causal_directory,
        tmp_path,
        tracker,
        models,
        num_iterations=2,
        **CRITIC_FREE[name] | {"kl_coef": 0.0, "missing_eos_penalty": None},
    )
    assert tracker.series("policy/zero_advantage_fraction") == [1.0, 1.0]
    assert tracker.series("policy/group_return_std") == [0.0, 0.0]
    assert tracker.series("policy/policy_loss") == [0.0, 0.0]
    assert all(torch.equal(p, before[n]) for n, p in models.policy.named_parameters())


def test_the_spread_of_returns_is_reported_over_the_batch_and_within_groups(
    causal_directory, tmp_path
):
    learner = learner_for(causal_directory, **RLOO)
    scored = scored_rollout(learner)
    _, scores, _ = prepare_experience(scored, PpoState(kl_coef=0.05), learner.settings)
    returns = whole_returns(scored, scores, 0.05)
    groups = [returns[start : start + 4] for start in range(0, 16, 4)]
    tracker = ListTracker()
    models = learner.models
    train_ppo(causal_directory, tmp_path, tracker, models, num_iterations=1, **RLOO)
    found = tracker.rows[0][1]
    assert found["policy/return_mean"] == pytest.approx(statistics.fmean(returns), abs=1e-4)
    assert found["policy/return_std"] == pytest.approx(statistics.pstdev(returns), abs=1e-4)
    within = statistics.fmean(map(statistics.pstdev, groups))
    assert found["policy/group_return_std"] == pytest.approx(within, abs=1e-4)
    assert found["policy/zero_advantage_fraction"] == 0.0


def test_the_adaptive_controller_moves_from_the_first_iteration_on(causal_directory, tmp_path):
    tracker = ListTracker()
    adaptive = {"kl_controller": "adaptive", "target_kl": 1e6, "kl_horizon": 160, "kl_coef": 0.1}
    train_ppo(causal_directory, tmp_path, tracker, num_iterations=3, **RLOO, **adaptive)
    torch.testing.assert_close(
        torch.tensor(tracker.series("policy/kl_coef")),
        torch.tensor([0.1 * (1 - 0.2 * 16 / 160) ** step for step in range(3)]),
    )


def test_the_kl_watch_rolls_back_and_a_crash_does_not_change_that(causal_directory, tmp_path):
    changes = {
        **RLOO,
        "kl_watch": KlWatchConfig(max_kl_per_token=0.02, action="roll_back", max_interventions=9),
        "optimizer": OptimizerConfig(learning_rate=2e-2, schedule="constant", warmup_fraction=0.0),
    }
    tracker = ListTracker()
    expected = train_ppo(causal_directory, tmp_path / "a", tracker, **changes)[2]
    assert tracker.series("policy/kl_interventions")[-1] > 0
    with pytest.raises(Crash):
        train_ppo(causal_directory, tmp_path / "b", CrashingTracker(5), **changes)
    assert train_ppo(causal_directory, tmp_path / "b", **changes)[2] == expected


def test_a_value_model_that_nobody_would_ask_is_refused(causal_directory, tmp_path):
    with pytest.raises(ConfigError, match="a value model is needed exactly with gae"):
        train_ppo(causal_directory, tmp_path, None, toy_models(causal_directory), **RLOO)
