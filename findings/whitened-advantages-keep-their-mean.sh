#!/usr/bin/env bash
# torchtune 0.6.1: the advantages that its PPO whitens have spread 1 and keep their mean, whatever it is.
#
# Expected: estimate_advantages gives advantages of mean 0 and spread 1, as whitened ones are and as its comment says
#   ("to reduce variance"). The function is "taken from" TRL, where shift_mean=True shifts the mean to 0.
# Seen: whiten(shift_mean=True), its default, divides by the spread and adds the old mean again: with shift_mean=False it
#   is taken away, the other way round than in TRL. As long as the value model is off by more than the rewards' spread,
#   every answer of a batch is pushed up, the worst ones too, or every one down. The rewards, whitened with
#   shift_mean=False, lose theirs. No warning; loss, clip fraction and rewards look usual.
# Matters: a reward model's scores have no zero. Ten added to every one change nothing that PPO should learn, and here
#   decide whether it does; so does a value model that begins far off, as every new one does.
# Until that changes: take the mean of estimate_advantages' result away before the loss, where the mask holds.
# Output seen (16 answers of quality -1 to 1, a batch of 64, value model new; 60 rounds with torchtune's PPOLoss, 10 seeds):
#   torchtune, rewards - 10: mean of the first advantages -10.04, of spread 1.00; quality in the end 0.91 (worst seed 0.83)
#   torchtune, rewards:      mean of the first advantages -0.04, of spread 1.00; quality in the end 1.00 (worst seed 0.99)
#   torchtune, rewards + 10: mean of the first advantages 9.96, of spread 1.00; quality in the end 0.82 (worst seed 0.56)
#   mean 0,    rewards - 10: mean of the first advantages 0.00, of spread 1.00; quality in the end 1.00 (worst seed 0.99)
#   mean 0,    rewards:      mean of the first advantages -0.00, of spread 1.00; quality in the end 1.00 (worst seed 0.99)
#   mean 0,    rewards + 10: mean of the first advantages 0.00, of spread 1.00; quality in the end 1.00 (worst seed 0.99)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 torchao==0.15.0 torchtune==0.6.1
HF_HUB_OFFLINE=1 env/bin/python - 2> warnings.txt <<'PYTHON' || { cat warnings.txt; exit 1; }
import torch
from torchtune import rlhf
from torchtune.rlhf.loss import PPOLoss

ANSWERS, BATCH, ROUNDS, PASSES, SEEDS = 16, 64, 60, 4, 10
QUALITY = torch.linspace(-1, 1, ANSWERS)


def by_definition(values, rewards, gamma, lmbda):
    """Of answers of one token, where an advantage is the reward less the value."""
    advantages = rewards - values
    return (advantages - advantages.mean()) / advantages.std(), rewards


def learn(estimate, offset, seed):
    torch.manual_seed(seed)
    logits, value = torch.zeros(ANSWERS, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer, loss = torch.optim.Adam([logits, value], lr=0.05), PPOLoss(epsilon=0.2)
    first = None
    for _ in range(ROUNDS):
        old = logits.detach().log_softmax(-1)
        answers = torch.multinomial(old.exp(), BATCH, replacement=True)
        rewards = (QUALITY[answers] + 0.5 * torch.randn(BATCH) + offset)[:, None]
        old_values = value.detach().repeat(BATCH, 1)
        advantages, returns = estimate(old_values, rewards, 1.0, 0.95)
        first = advantages if first is None else first
        for _ in range(PASSES):
            logprobs = logits.log_softmax(-1)[answers][:, None]
            total = loss(old[answers][:, None], logprobs, advantages, old_values, value.expand(BATCH, 1), returns)[0]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return float(first.mean()), float(first.std()), float(logits.detach().softmax(-1) @ QUALITY)


def show(name, estimate, offset):
    runs = torch.tensor([learn(estimate, offset, seed) for seed in range(SEEDS)])
    mean, spread, quality = (float(value) for value in runs.mean(0))
    worst = float(runs[:, 2].min())
    rewards = "rewards" if offset == 0 else f"rewards {'-' if offset < 0 else '+'} {abs(offset):.0f}"
    print(
        f"{name + ',':<10} {rewards + ':':<13} mean of the first advantages {mean:.2f}, of spread {spread:.2f}; "
        f"quality in the end {quality:.2f} (worst seed {worst:.2f})"
    )
    return mean, spread, quality


OFFSETS = (-10.0, 0.0, 10.0)
library = [show("torchtune", rlhf.estimate_advantages, offset) for offset in OFFSETS]
defined = [show("mean 0", by_definition, offset) for offset in OFFSETS]
right = all(abs(mean) < 1e-4 and quality > 0.98 for mean, _, quality in defined)
kept = library[0][0] < -5 and library[2][0] > 5 and all(abs(spread - 1) < 0.01 for _, spread, _ in library)
worse = library[1][2] > 0.98 and library[0][2] < 0.95 and library[2][2] < 0.95
raise SystemExit(0 if right and kept and worse else "the behaviour has changed")
PYTHON
