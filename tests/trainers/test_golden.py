"""Twenty steps of every trainer against numbers that were kept: mathematics that moves is seen.

A change that means to move them records them anew, with ``python -m tests.trainers.test_golden``,
and says in the changelog what moved and why. Rollouts are given, so that another processor cannot
change a sampled token, and what can be in float64 is, so that its order of summation shows less.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_core.config import OptimizerConfig
from rlhf_core.rollout.experience import Rollout
from rlhf_core.trainers import ppo
from tests.trainers import ppo_toys, toys
from tests.trainers.conftest import save_causal
from tests.trainers.ppo_toys import DR_GRPO, GRPO, ONE_TRUNK, RLOO
from tests.trainers.toys import ListTracker

KEPT = Path(__file__).with_name("golden")
NUM_STEPS = 20
TOLERANCE = 1e-5
"""Relative; SSE4 and AVX-512 arithmetic on one processor differ by less."""
ROUNDING = 1e-6
"""Nats, about: what float32 log-probabilities leave of a quantity that is 0, or nearly."""

SUPERVISED = {
    "sft": ("sft", {}),
    "reward": ("reward", {}),
    "dpo": ("dpo", {}),
    "robust": ("dpo", {"loss": "robust", "label_smoothing": 0.1}),
    "ipo": ("dpo", {"loss": "ipo"}),
    "simpo": ("dpo", {"loss": "simpo"}),
    "orpo": ("dpo", {"loss": "orpo"}),
    "kto": ("kto", {"num_epochs": 5}),
}
"""Which trainer, and its settings."""
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, adam_eps=1e-3, warmup_fraction=0.1)
PPO_OPTIMIZER = OPTIMIZER.model_copy(update={"learning_rate": 3e-3})
"""With an epsilon that keeps steps in proportion to gradients: else those near 0 are mostly noise,
which Adam makes as large as all others."""
PPO = {"ppo": {}, "ppo-one-trunk": ONE_TRUNK, "rloo": RLOO, "grpo": GRPO, "dr-grpo": DR_GRPO}
QUANTITIES = (
    *("loss", "grad_norm", "kl", "approx_kl", "margin", "baseline"),
    *("score_mean", "return_mean"),
)


def is_kept(name):
    """Whether a metric is one of those that tell whether mathematics moved."""
    quantity = name.split("/")[-1]
    return quantity in QUANTITIES or quantity.endswith(("_loss", "_grad_norm", "_nll"))


def in_float64(load):
    return lambda *args, **kwargs: load(*args, **kwargs).double()


def train(name, causal, work, monkeypatch, rollouts):
    """Train for twenty steps; return step by step what the trainer logged."""
    tracker = ListTracker()
    if name in SUPERVISED:
        for load in ("load_causal", "scalar_from_causal"):
            monkeypatch.setattr(toys, load, in_float64(getattr(toys, load)))
        stage, changes = SUPERVISED[name]
        given = {"num_epochs": 3, "optimizer": OPTIMIZER, **toys.MANY_PASSES, **changes}
        toys.train_stage(stage, causal, work, tracker, **given)
    else:
        monkeypatch.setattr(ppo, "sample_rollout", rollouts)
        changes = {"num_iterations": NUM_STEPS, "optimizer": PPO_OPTIMIZER, **ppo_toys.MANY_PASSES}
        ppo_toys.train_ppo(causal, work, tracker, **changes | PPO[name])
    rows = [(step, {key: metrics[key] for key in metrics if is_kept(key)})
            for step, metrics in tracker.rows]  # fmt: skip
    return [[step, metrics] for step, metrics in rows if metrics and step <= NUM_STEPS]


class Recorded:
    """Stands for the sampler: the responses of a file, with what the policy thinks of them now."""

    def __init__(self, responses):
        self.iterations = iter(responses)

    def __call__(self, policy, prompts, *, sampler, draws, sampling, budget):
        responses = [toys.ids(*row) for row in next(self.iterations)]
        lengths = torch.tensor([len(row) for row in responses])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        logprobs = torch.zeros(mask.shape)
        values = logprobs.clone()
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            text = torch.from_numpy(np.concatenate([prompt, response])).long()
            before = slice(len(prompt) - 1, len(text) - 1)
            with torch.no_grad():
                passed = policy(input_ids=text[None], output_hidden_states=True)
            chosen = passed.logits[0].float().log_softmax(-1)[before]
            logprobs[row, : len(response)] = chosen.gather(1, text[len(prompt) :, None])[:, 0]
            if sampling.value_head is not None:
                with torch.no_grad():
                    hidden = passed.hidden_states[-1][0, before]
                    values[row, : len(response)] = sampling.value_head(hidden).flatten()
        return Rollout(
            prompts=prompts,
            responses=responses,
            logprobs=logprobs,
            mask=mask,
            finished=torch.tensor([bool(row[-1] == toys.EOS) for row in responses]),
            values=None if sampling.value_head is None else values,
        )


def drawn_responses(num_rows):
    """Return responses for every iteration, drawn without a model: token 3 more often as it goes.

    Same as recorded from a sampler for what they are for, and nothing about them can go stale.
    """
    generator = np.random.default_rng(0)
    iterations = []
    for iteration in range(NUM_STEPS + 1):
        rows = []
        for _ in range(num_rows):
            tokens = generator.integers(3, toys.VOCAB, int(generator.integers(1, 7)))
            tokens[generator.uniform(size=len(tokens)) < iteration / (2 * NUM_STEPS)] = 3
            ended = [toys.EOS] if generator.uniform() < 0.8 else []
            rows.append([*tokens.tolist(), *ended])
        iterations.append(rows)
    return iterations


def trained(name, folder, monkeypatch):
    rollouts = Recorded(drawn_responses(ppo_toys.toy_settings().rollout_batch_size))
    return train(name, save_causal(folder), folder / "work", monkeypatch, rollouts)


@pytest.mark.parametrize("name", [*SUPERVISED, *PPO])
def test_twenty_steps_are_what_they_were(name, tmp_path, monkeypatch):
    kept = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    found = trained(name, tmp_path, monkeypatch)
    assert [step for step, _ in found] == [step for step, _ in kept]
    for (step, metrics), (_, expected) in zip(found, kept, strict=True):
        assert metrics == pytest.approx(expected, rel=TOLERANCE, abs=ROUNDING), f"step {step}"
    assert max(step for step, _ in kept) == NUM_STEPS


def record():
    """Write the numbers of today's code."""
    for name in (*SUPERVISED, *PPO):
        with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
            rows = trained(name, Path(folder), monkeypatch)
        lines = ",\n".join(json.dumps(row) for row in rows)
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        sys.stdout.write(f"{name}: {len(rows)} rows\n")


if __name__ == "__main__":
    record()
