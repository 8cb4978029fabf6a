"""Run TRL's GRPOTrainer and ours on the same work and say how they compare.

    python benchmarks/grpo.py [--peer PYTHON] [--rounds N] [--warm-up N] [--setting A] [--ours B]

As ``ppo.py``: 64 responses an iteration, here four to each of 16 prompts, the KL a loss (k3). First
both replay the first step on the same responses, ours with the peer's deviation of a group (over
G - 1): advantages, scores, entropy and loss must agree to 1e-5.
"""

from pathlib import Path

from compare import PEER
from ppo import COMPILED, PpoSetting, agreement, answers, measure
from ppo_work import EPOCHS, GROUP, MINIBATCHES

GRPO: dict[str, object] = {
    "advantages": "grpo",
    "responses_per_prompt": GROUP,
    "kl_placement": "loss",
    "kl_estimator": "k3",
    "missing_eos_penalty": None,
    "critic_warmup_iterations": 2,
}
"""The peer's algorithm in our words; there is no critic, whose warm-up keeps its default."""
OURS = {"defaults": GRPO, "compiled layers": {**GRPO, **COMPILED}}
SETTINGS = tuple(
    PpoSetting(
        f"responses up to {length}",
        length,
        OURS,
        script="grpo_peer.py",
        longest="max_completion_length",
    )
    for length in (64, 160)
)


def replay(peer: Path) -> str:
    """Replay the first step on both sides; say how far apart they are."""
    theirs, ours = answers(peer, "grpo_peer.py", {**GRPO, "num_epochs": 1}, group=GROUP)
    theirs["advantages"] = [[value] * len(ours["advantages"][0]) for value in theirs["advantages"]]
    return agreement(theirs, ours, ("score", "entropy", "policy_loss"))


if __name__ == "__main__":
    work = (
        f"16 prompts of 32 to 64 tokens, {GROUP} responses to each, {EPOCHS} epochs of "
        f"{MINIBATCHES} minibatches."
    )
    measure("grpo", SETTINGS, __doc__, (replay, work), PEER)
