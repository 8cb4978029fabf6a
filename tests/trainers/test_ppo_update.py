"""One PPO update against a plain padded implementation, and what must not change it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf

from rlhf_core.models import token_values
from rlhf_core.rollout.experience import Rollout
from rlhf_core.rollout.score import score_rollout
from rlhf_core.trainers.ppo import (
    accumulate_policy_gradient,
    collect_rollout,
    prepare_experience,
    value_terms,
)
from rlhf_core.trainers.ppo_learner import Learner, Update, plan_minibatches
from rlhf_core.trainers.ppo_watch import PpoState
from tests.trainers.ppo_toys import GOOD, reward_directory, toy_data, toy_models, toy_settings
from tests.trainers.toys import EOS

ROWS = [3, 0, 14, 7, 9, 1]


def nothing_mixed():
    return {}


def learner_for(causal, **changes):
    settings = toy_settings(**changes)
    models = toy_models(causal, value_model=settings.needs_value_model)
    with torch.no_grad():  # a reference of its own, so that the KL is not zero
        for parameter in models.reference.parameters():
            parameter.mul_(1.1)
    return Learner(models, toy_data(), settings, seed=0)


def scored_rollout(learner, budget=100_000):
    rollout = collect_rollout(learner, learner.data, iteration=0)
    return score_rollout(rollout, learner.scorers(), budget=budget)


def test_the_score_is_read_at_the_end_that_the_reward_model_knows(causal_directory):
    learner = learner_for(causal_directory)
    learner.data = replace(learner.data, end_ids=[GOOD, EOS])
    rollout = collect_rollout(learner, learner.data, iteration=0)
    as_sampled = score_rollout(rollout, learner.scorers(), budget=60)
    learner.data = replace(learner.data, turn_end_id=EOS)
    scored = score_rollout(rollout, learner.scorers(), budget=60)
    other_end = torch.tensor([int(ids[-1]) == GOOD for ids in rollout.responses])
    assert 0 < int(other_end.sum()) < rollout.num_rows
    assert torch.equal(scored.scores != as_sampled.scores, other_end)
    for name in ("old_logprobs", "ref_logprobs", "values"):
        assert torch.equal(getattr(scored, name), getattr(as_sampled, name))
    for row, ids in enumerate(rollout.responses):
        ids[-1] = EOS if other_end[row] else ids[-1]
    ended_alike = score_rollout(rollout, learner.scorers(), budget=60)
    assert torch.equal(scored.scores, ended_alike.scores)


def make_update(learner, rows=None, **state):
    state = PpoState(**{"kl_coef": 0.3, **state})
    experience, _, _ = prepare_experience(scored_rollout(learner), state, learner.settings)
    minibatches = plan_minibatches(16, settings=learner.settings, iteration=0, seed=0)
    return Update(experience, [rows] if rows else minibatches, learner.settings, 0.3, nothing_mixed)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_relative_gap(one, other):
    assert one.keys() == other.keys()
    return max(
        float((one[name] - other[name]).norm() / other[name].norm().clamp_min(1e-6))
        for name in other
    )


class PaddedPpo:
    """PPO for one batch, written the plain way: padded, eager, one formula after the other."""

    def __init__(self, learner, causal, rollout, side):
        self.learner, self.rollout = learner, rollout
        eager = {"attn_implementation": "eager", "dtype": torch.float32}
        self.policy = hf.AutoModelForCausalLM.from_pretrained(causal, **eager)
        self.reference = hf.AutoModelForCausalLM.from_pretrained(causal, **eager)
        self.reference.load_state_dict(learner.models.reference.state_dict())
        classifier = hf.AutoModelForSequenceClassification
        self.rewarder = classifier.from_pretrained(reward_directory(causal), num_labels=1, **eager)
        self.value_model = classifier.from_pretrained(
            reward_directory(causal), num_labels=1, **eager
        )
        self.pad(side)

    def pad(self, side):
        rows = [
            np.concatenate(pair)
            for pair in zip(self.rollout.prompts, self.rollout.responses, strict=True)
        ]
        width = max(map(len, rows)) + 3
        self.tokens = torch.zeros(len(rows), width, dtype=torch.int64)
        self.attended = torch.zeros(len(rows), width, dtype=torch.bool)
        self.responses = []
        for row, sequence in enumerate(rows):
            start = width - len(sequence) if side == "left" else 0
            self.tokens[row, start : start + len(sequence)] = torch.from_numpy(sequence).long()
            self.attended[row, start : start + len(sequence)] = True
            first = start + len(self.rollout.prompts[row])
            self.responses.append(range(first, start + len(sequence)))
        self.positions = (self.attended.long().cumsum(1) - 1).clamp_min(0)

    def run(self, model, rows):
        return model(
            input_ids=self.tokens[rows],
            attention_mask=self.attended[rows].long(),
            position_ids=self.positions[rows],
            use_cache=False,
        )

    def logprobs(self, model, rows):
        logits = self.run(model, rows).logits / self.learner.settings.temperature
        table = torch.log_softmax(logits, -1)
        return [
            torch.stack([table[i, t - 1, self.tokens[row, t]] for t in self.responses[row]])
            for i, row in enumerate(rows)
        ]

    def scalars(self, model, rows):
        return model.score(self.run(model.model, rows).last_hidden_state)[..., 0]

    def values(self, rows):
        table = self.scalars(self.value_model, rows)
        return [
            torch.stack([table[i, t - 1] for t in self.responses[row]])
            for i, row in enumerate(rows)
        ]

    @torch.no_grad()
    def advantages_and_returns(self, kl_coef, gamma, gae_lambda):
        rows = list(range(len(self.responses)))
        old, ref = self.logprobs(self.policy, rows), self.logprobs(self.reference, rows)
        values = self.values(rows)
        scores = self.scalars(self.rewarder, rows)
        advantages, returns = [], []
        for row in rows:
            reward = -kl_coef * (old[row] - ref[row])
            ended = int(self.tokens[row, self.responses[row][-1]]) == EOS
            reward[-1] += scores[row, self.responses[row][-1]] if ended else -1.0
            advantage = torch.zeros_like(reward)
            for t in range(len(reward)):
                for later in range(t, len(reward)):
                    after = values[row][later + 1] if later + 1 < len(reward) else 0.0
                    delta = reward[later] + gamma * after - values[row][later]
                    advantage[t] += (gamma * gae_lambda) ** (later - t) * delta
            advantages.append(advantage)
            returns.append(advantage + values[row])
        joined = torch.cat(advantages)
        whitened = [
            (a - joined.mean()) / (joined.var(correction=0) + 1e-8).sqrt() for a in advantages
        ]
        return old, values, whitened, returns


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("group", [1, 4])
def test_losses_and_gradients_equal_those_of_a_plain_padded_ppo(side, group, causal_directory):
    learner = learner_for(causal_directory, temperature=0.8, gamma=0.97, responses_per_prompt=group)
    update = make_update(learner, rows=ROWS)
    rollout = update.experience.rollout
    assert rollout.finished.any()
    assert not rollout.finished.all()
    plain = PaddedPpo(learner, causal_directory, rollout, side)
    old, old_values, advantages, returns = plain.advantages_and_returns(0.3, 0.97, 0.95)
    for mine, theirs in (
        (update.experience.old_logprobs, old),
        (update.experience.values, old_values),
        (update.experience.advantages, advantages),
        (update.experience.returns, returns),
    ):
        torch.testing.assert_close(mine[rollout.mask], torch.cat(theirs), atol=2e-5, rtol=1e-5)

    with torch.no_grad():  # move both away from the sampling policy, the same way
        for model in (learner.models.policy, plain.policy):
            torch.manual_seed(5)
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        for model in (learner.models.value_model, plain.value_model):
            model.score.weight.mul_(1.3)
    seen = accumulate_policy_gradient(learner.policy, update, ROWS)
    new = torch.cat(plain.logprobs(plain.policy, ROWS))
    ratio = torch.exp(new - torch.cat([old[row] for row in ROWS]))
    gain = torch.cat([advantages[row] for row in ROWS])
    expected = -torch.where(gain > 0, ratio.clamp(max=1.2), ratio.clamp(min=0.8)) * gain
    assert ((ratio < 0.8) | (ratio > 1.2)).any()
    torch.testing.assert_close(seen.losses, expected.detach(), atol=2e-5, rtol=1e-5)
    expected.mean().backward()
    assert largest_relative_gap(gradients(learner.models.policy), gradients(plain.policy)) < 1e-4

    values = token_values(learner.models.value_model, rollout.pack(ROWS))
    value_terms(values, update, ROWS)[0].mean().backward()
    new = torch.cat(plain.values(ROWS))
    target = torch.cat([returns[row] for row in ROWS])
    before = torch.cat([old_values[row] for row in ROWS])
    clipped = before + (new - before).clamp(-0.2, 0.2)
    (torch.maximum((new - target) ** 2, (clipped - target) ** 2) / 2).mean().backward()
    mine, theirs = gradients(learner.models.value_model), gradients(plain.value_model)
    assert largest_relative_gap(mine, theirs) < 1e-4


@pytest.mark.parametrize(
    ("advantages", "group"), [("gae", 1), ("gae", 4), ("rloo", 4), ("grpo", 4)]
)
@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_micro_batches_do_not_change_a_gradient(advantages, group, placement, causal_directory):
    results = []
    for budget in (1, 25, 70, 100_000):
        learner = learner_for(
            causal_directory,
            micro_batch_tokens=budget,
            advantages=advantages,
            responses_per_prompt=group,
            kl_placement=placement,
            kl_estimator="k3",
        )
        update = make_update(learner)
        double = learner.models.policy.double()
        accumulate_policy_gradient(learner.policy, update, update.minibatches[0])
        results.append(gradients(double))
    assert all(largest_relative_gap(other, results[-1]) < 1e-6 for other in results[:-1])


def test_scores_values_and_logprobs_do_not_depend_on_the_batch(causal_directory):
    learner = learner_for(causal_directory)
    rollout = collect_rollout(learner, learner.data, iteration=0)
    whole = score_rollout(rollout, learner.scorers(), budget=100_000)
    alone = score_rollout(rollout, learner.scorers(), budget=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = Rollout(
        prompts=[rollout.prompts[i] for i in order],
        responses=[rollout.responses[i] for i in order],
        logprobs=rollout.logprobs[order],
        mask=rollout.mask[order],
        finished=rollout.finished[order],
    )
    mixed = score_rollout(shuffled, learner.scorers(), budget=60)
    for name in ("scores", "values", "ref_logprobs"):
        torch.testing.assert_close(getattr(whole, name), getattr(alone, name), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            getattr(whole, name)[order], getattr(mixed, name), atol=1e-5, rtol=0
        )
