"""Single details of a PPO update, each against its definition."""

import numpy as np
import pytest
import torch
import transformers as hf

from rlhf_core.errors import DivergedError
from rlhf_core.functional.rewards import shape_scores
from rlhf_core.functional.running_moments import RunningMoments
from rlhf_core.models import hidden_states
from rlhf_core.rollout.experience import Rollout
from rlhf_core.rollout.score import score_rollout
from rlhf_core.trainers.loop import Optimization, draw
from rlhf_core.trainers.parallel import side_by_side
from rlhf_core.trainers.ppo import (
    accumulate_policy_gradient,
    collect_rollout,
    prepare_experience,
    update_policy,
    update_shared,
    update_value,
    value_step,
    value_terms,
)
from rlhf_core.trainers.ppo_learner import Learner, Update, plan_minibatches
from rlhf_core.trainers.ppo_watch import PpoState
from tests.trainers.ppo_toys import ONE_TRUNK, toy_settings
from tests.trainers.test_ppo_update import (
    ROWS,
    PaddedPpo,
    gradients,
    largest_relative_gap,
    learner_for,
    make_update,
    nothing_mixed,
    scored_rollout,
)
from tests.trainers.toys import EOS


def test_an_error_of_one_task_comes_out(causal_directory):
    def fail():
        raise DivergedError("no")

    with pytest.raises(DivergedError):
        side_by_side(lambda: {}, fail)


@pytest.mark.parametrize(("cores", "each"), [(1, 1), (2, 1), (5, 2), (8, 4)])
def test_the_cores_are_divided_among_the_tasks(cores, each):
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        assert side_by_side(torch.get_num_threads, torch.get_num_threads) == [each, each]
        assert side_by_side(torch.get_num_threads, allowed=False) == [cores]
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


def test_gradient_norm_is_really_clipped(causal_directory):
    learner = learner_for(causal_directory)
    update = make_update(learner)
    norms = []
    for optimization in (learner.policy, learner.value):
        step = optimization.optimizer.step

        def spy(optimization=optimization, step=step):
            parts = [p.grad.norm() for p in optimization.parameters if p.grad is not None]
            norms.append(float(torch.stack(parts).norm()))
            step()

        optimization.optimizer.step = spy
        for parameter in optimization.parameters:
            parameter.register_hook(lambda grad: 1e4 * grad)
    reported = update_policy(learner.policy, update)["grad_norm"]
    reported_value = update_value(learner.value, update)["value_grad_norm"]
    assert reported > 100
    assert reported_value > 100
    assert norms == pytest.approx([1.0] * 8, rel=1e-3)


def test_a_sampler_that_disagrees_is_noticed(causal_directory):
    learner = learner_for(causal_directory)
    update = make_update(learner)
    with torch.no_grad():
        learner.models.policy.lm_head.weight.mul_(1.01)
    with pytest.raises(DivergedError, match="max_ratio_error"):
        update_policy(learner.policy, update)


def test_recomputed_logprobs_keep_the_ratio_at_one_but_the_mismatch_is_limited(causal_directory):
    learner = learner_for(causal_directory, recompute_old_logprobs=True)
    rollout = collect_rollout(learner, learner.data, iteration=0)
    for shift, ok in ((0.03, True), (0.06, False)):
        scored = score_rollout(_shifted(rollout, shift), learner.scorers(), budget=100)
        experience, _, _ = prepare_experience(scored, PpoState(kl_coef=0.1), learner.settings)
        update = Update(experience, [ROWS], learner.settings, 0.1, nothing_mixed)
        learner.policy.optimizer.step = lambda: None  # the policy must stay where it was
        if ok:
            metrics = update_policy(learner.policy, update)
            assert metrics["first_ratio_error"] < 1e-4
            assert metrics["logprob_mismatch"] == pytest.approx(np.exp(0.03), rel=1e-3)
        else:
            with pytest.raises(DivergedError, match="max_logprob_mismatch"):
                update_policy(learner.policy, update)


def _shifted(rollout, by):
    return Rollout(
        rollout.prompts, rollout.responses, rollout.logprobs - by, rollout.mask, rollout.finished
    )


def test_dropout_is_off_everywhere(causal_directory):
    learner = learner_for(causal_directory)
    for model in (learner.models.policy, learner.models.value_model):
        model.add_module("noise", torch.nn.Dropout(0.5))
    Learner(learner.models, learner.data, learner.settings, seed=0)
    for model in (learner.models.policy, learner.models.value_model):
        assert model.noise.p == 0.0


def test_a_shared_trunk_gets_the_sum_of_both_gradients(causal_directory):
    learner = learner_for(causal_directory, **ONE_TRUNK)
    with torch.no_grad():
        learner.value.model.weight.normal_(generator=torch.Generator().manual_seed(0))
    update = make_update(learner, rows=ROWS)
    kept = {}
    learner.policy.apply = lambda loss: kept.update(gradients(learner.models.policy)) or {}
    update_shared(learner.policy, learner.value, update, policy_frozen=False)
    learner.models.policy.zero_grad()

    other = learner_for(causal_directory, **ONE_TRUNK)
    with torch.no_grad():
        other.value.model.weight.normal_(generator=torch.Generator().manual_seed(0))
    accumulate_policy_gradient(other.policy, update, ROWS)
    batch = update.experience.rollout.pack(ROWS)
    hidden = hidden_states(other.models.policy, batch)[batch.predictor_positions]
    loss, _ = value_terms(other.value.model(hidden)[:, 0], update, ROWS)
    (0.1 * loss.mean()).backward()
    assert largest_relative_gap(kept, gradients(other.models.policy)) < 1e-4


def test_a_frozen_trunk_lets_the_value_head_alone_learn(causal_directory):
    learner = learner_for(causal_directory, **ONE_TRUNK)
    update = make_update(learner)
    before = [p.detach().clone() for p in learner.models.policy.parameters()]
    assert not learner.value.model.weight.any()
    metrics = update_shared(learner.policy, learner.value, update, policy_frozen=True)
    assert "policy_loss" not in metrics
    assert learner.policy.step == 0
    after = learner.models.policy.parameters()
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert learner.value.model.weight.abs().max() > 0


def test_ptx_adds_its_weighted_nll_gradient(causal_directory):
    learner = learner_for(causal_directory, ptx_coef=0.5, micro_batch_tokens=20)
    nll = learner._mix_demonstrations()["ptx_loss"]
    mixed = gradients(learner.models.policy)
    plain = hf.AutoModelForCausalLM.from_pretrained(
        causal_directory, attn_implementation="eager", dtype=torch.float32
    )
    examples = draw(learner.data.demonstrations, drawn=0, count=8, seed=0)
    losses = []
    for example in examples:
        tokens = torch.from_numpy(np.concatenate([example.prompt_ids, example.response_ids])).long()
        table = torch.log_softmax(plain(input_ids=tokens[None]).logits[0], -1)
        losses += [-table[t - 1, tokens[t]] for t in range(len(example.prompt_ids), len(tokens))]
    mean = torch.stack(losses).mean()
    (0.5 * mean).backward()
    assert nll == pytest.approx(mean.item(), rel=1e-5)
    assert largest_relative_gap(mixed, gradients(plain)) < 1e-4


KL_BY_DEFINITION = {
    "k2": lambda log_ratio: log_ratio**2 / 2,
    "k3": lambda log_ratio: np.exp(-log_ratio) - 1 + log_ratio,
}


@pytest.mark.parametrize("estimator", KL_BY_DEFINITION)
def test_kl_as_a_loss_is_its_definition_beside_the_surrogate(estimator, causal_directory):
    learner = learner_for(
        causal_directory, kl_placement="loss", kl_estimator=estimator, temperature=0.8
    )
    update = make_update(learner, rows=ROWS)
    rollout = update.experience.rollout
    with torch.no_grad():  # away from the sampling policy
        generator = torch.Generator().manual_seed(5)
        for parameter in learner.models.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    seen = accumulate_policy_gradient(learner.policy, update, ROWS)
    plain = PaddedPpo(learner, causal_directory, rollout, "right")
    plain.policy.load_state_dict(learner.models.policy.state_dict())
    new = torch.cat(plain.logprobs(plain.policy, ROWS))
    with torch.no_grad():
        ref = torch.cat(plain.logprobs(plain.reference, ROWS))
    old, advantages = update.experience.at(
        ROWS, update.experience.old_logprobs, update.experience.advantages
    )
    ratio = torch.exp(new - old)
    surrogate = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    kl = KL_BY_DEFINITION[estimator]((new - ref).detach().numpy())
    assert np.abs(kl).mean() > 1e-3
    got = (seen.losses - surrogate.detach()).numpy()
    np.testing.assert_allclose(got, 0.3 * kl, atol=2e-5)
    log_ratio = new - ref
    loss_of = {
        "k2": log_ratio.square() / 2,
        "k3": torch.expm1(-log_ratio) + log_ratio,
    }[estimator]
    (surrogate + 0.3 * loss_of).mean().backward()
    assert largest_relative_gap(gradients(learner.models.policy), gradients(plain.policy)) < 1e-4


def test_with_kl_as_a_loss_the_rewards_hold_the_score_alone(causal_directory):
    learner = learner_for(causal_directory, kl_placement="loss", kl_estimator="k3", gae_lambda=1.0)
    scored = scored_rollout(learner)
    state = PpoState(kl_coef=0.3)
    experience, scores, _ = prepare_experience(scored, state, learner.settings)
    mask = scored.rollout.mask
    expected = scores[:, None].expand(mask.shape)  # gamma 1, lambda 1: what is still to come
    torch.testing.assert_close(experience.returns[mask], expected[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", *KL_BY_DEFINITION])
def test_the_reward_holds_the_kl_by_the_estimator_of_the_settings(estimator, causal_directory):
    learner = learner_for(causal_directory, kl_estimator=estimator, gae_lambda=1.0)
    scored = scored_rollout(learner)
    experience, scores, _ = prepare_experience(scored, PpoState(kl_coef=0.3), learner.settings)
    by_definition = {"k1": lambda log_ratio: log_ratio, **KL_BY_DEFINITION}[estimator]
    kl = by_definition((scored.old_logprobs - scored.ref_logprobs).numpy())
    mask = scored.rollout.mask.numpy()
    to_come = np.flip(np.cumsum(np.flip(np.where(mask, kl, 0.0), 1), 1), 1)
    expected = scores.numpy()[:, None] - 0.3 * to_come
    np.testing.assert_allclose(experience.returns.numpy()[mask], expected[mask], atol=1e-5)
    assert np.abs(kl[mask]).mean() > 1e-4


def test_the_value_loss_is_weighted_by_its_coefficient(causal_directory):
    norms = []
    for coefficient in (0.1, 0.3):
        learner = learner_for(causal_directory, value_coef=coefficient)
        update = make_update(learner, rows=ROWS)
        norms.append(update_value(learner.value, update)["value_grad_norm"])
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-4)


@pytest.mark.parametrize("whitened", [True, False])
def test_advantages_are_whitened_over_the_batch_or_left_as_they_are(whitened, causal_directory):
    learner = learner_for(causal_directory, whiten_advantages=whitened)
    experience = make_update(learner).experience
    mask = experience.rollout.mask
    plain = (experience.returns - experience.values)[mask]
    assert plain.std(correction=0) > 0.05
    expected = (plain - plain.mean()) / plain.std(correction=0) if whitened else plain
    torch.testing.assert_close(experience.advantages[mask], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rate", "expected"), [(None, 1e-2), (3e-4, 3e-4)])
def test_the_value_model_has_a_learning_rate_of_its_own(rate, expected, causal_directory):
    learner = learner_for(causal_directory, value_learning_rate=rate)
    before = {n: p.detach().clone() for n, p in learner.models.value_model.named_parameters()}
    update = make_update(learner, rows=ROWS)
    assert update_value(learner.value, update)["value_learning_rate"] == pytest.approx(expected)
    assert update_policy(learner.policy, update)["learning_rate"] == pytest.approx(1e-2)
    moved = max(
        float((p.detach() - before[n]).abs().max())
        for n, p in learner.models.value_model.named_parameters()
    )
    assert moved == pytest.approx(expected, rel=0.05)  # Adam's first step is the rate itself


@pytest.mark.parametrize("group", [1, 2, 4])
def test_every_epoch_visits_every_row_once_and_groups_stay_together(group):
    settings = toy_settings(responses_per_prompt=group)
    minibatches = plan_minibatches(16, settings=settings, iteration=3, seed=0)
    assert [len(rows) for rows in minibatches] == [8, 8, 8, 8]
    epochs = [minibatches[0] + minibatches[1], minibatches[2] + minibatches[3]]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    for rows in minibatches:
        for start in range(0, 8, group):
            first = rows[start]
            assert first % group == 0
            assert rows[start : start + group] == list(range(first, first + group))


def test_prompts_come_in_a_new_order_once_all_were_drawn():
    items = list(range(7))
    stream = [x for start in range(0, 21, 3) for x in draw(items, drawn=start, count=3, seed=1)]
    assert all(sorted(stream[start : start + 7]) == items for start in (0, 7, 14))
    assert stream[:7] != stream[7:14]
    assert draw(items, drawn=2, count=15, seed=1) == stream[2:17]
    assert draw(items, drawn=0, count=7, seed=2) != stream[:7]


def test_scores_are_scaled_then_clipped_then_penalized():
    settings = toy_settings(scale_scores=True, clip_scores=1.0, missing_eos_penalty=3.0)
    scores, finished = torch.tensor([4.0, -2.0, 900.0]), torch.tensor([True, True, False])
    shaped, moments = shape_scores(
        scores,
        finished,
        RunningMoments(),
        scale=settings.scale_scores,
        clip=settings.clip_scores,
        missing_eos_penalty=settings.missing_eos_penalty,
    )
    assert moments == RunningMoments(count=2, mean=1.0, sum_squares=18.0)  # std 3
    assert shaped.tolist() == pytest.approx([1.0, -2 / 3, -3.0])


def test_without_a_penalty_the_reward_model_judges_cut_texts_too():
    settings = toy_settings(missing_eos_penalty=None)
    scores, finished = torch.tensor([4.0, 9.0]), torch.tensor([True, False])
    shaped, moments = shape_scores(
        scores,
        finished,
        RunningMoments(),
        scale=settings.scale_scores,
        clip=settings.clip_scores,
        missing_eos_penalty=settings.missing_eos_penalty,
    )
    assert shaped.tolist() == [4.0, 9.0]
    assert moments.count == 2


def test_value_step_reports_the_share_of_values_that_left_the_clip_range(causal_directory):
    model = torch.nn.Linear(1, 1)
    optimization = Optimization(model, toy_settings().optimizer, total_steps=1)
    model(torch.ones(1)).sum().backward()
    parts = [
        (torch.tensor([1.0, 2.0]), torch.tensor([True, False])),
        (torch.tensor([3.0, 6.0]), torch.tensor([False, False])),
    ]
    metrics = value_step(optimization, parts)
    assert metrics["value_loss"] == 3.0
    assert metrics["value_clip_fraction"] == 0.25


def test_pad_plays_no_part_even_where_it_is_eos(causal_directory):
    outcomes = []
    for pad in (0, EOS):
        learner = learner_for(causal_directory)
        for model in vars(learner.models).values():
            model.config.pad_token_id = pad
        outcomes.append(scored_rollout(learner))
    for name in ("scores", "values", "ref_logprobs", "old_logprobs"):
        assert torch.equal(getattr(outcomes[0], name), getattr(outcomes[1], name))
    ended = [row[-1] == EOS for row in outcomes[0].rollout.responses]
    assert outcomes[0].rollout.finished.tolist() == ended


def test_policy_and_value_learn_the_same_side_by_side_and_in_turn(causal_directory):
    threads = torch.get_num_threads()
    weights = []
    for cores in (1, 2):
        learner = learner_for(causal_directory)
        torch.set_num_threads(1)
        update = make_update(learner)
        torch.set_num_threads(cores)
        side_by_side(
            lambda learner=learner, update=update: update_policy(learner.policy, update),
            lambda learner=learner, update=update: update_value(learner.value, update),
        )
        models = (learner.models.policy, learner.models.value_model)
        weights.append([p.detach().clone() for model in models for p in model.parameters()])
        assert torch.get_num_threads() == cores
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))
