"""Our side of the PPO comparison: one iteration at a time (ppo_ours.py STAGE FOLDER OPTIONS)."""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import worker
from ppo_work import (
    ADAM_EPS,
    BATCH,
    EPOCHS,
    KL_COEF,
    LEARNING_RATE,
    MINIBATCHES,
    REPLAY_LEARNING_RATE,
    VALUE_COEF,
    read_prompts,
    read_responses,
    wait_for_step,
)
from work import BETA2, EOS, MAX_GRAD_NORM

sys.stdout = sys.stderr
OPTIONS = json.loads(sys.argv[3])
worker.take_threads()

from rlhf_core.config import OptimizerConfig, PpoConfig  # noqa: E402
from rlhf_core.functional.advantages import (  # noqa: E402
    GROUP_ADVANTAGES,
    GROUP_EPS,
)
from rlhf_core.models import load_causal, load_scalar, token_logprobs  # noqa: E402
from rlhf_core.rollout.experience import Rollout, rollout_metrics  # noqa: E402
from rlhf_core.rollout.score import score_rollout  # noqa: E402
from rlhf_core.tokenization import TokenizedPrompt, as_token_ids  # noqa: E402
from rlhf_core.trainers.checkpoint import CheckpointStore  # noqa: E402
from rlhf_core.trainers.loop import TrainingRun  # noqa: E402
from rlhf_core.trainers.ppo import (  # noqa: E402
    PpoData,
    PpoModels,
    fit_ppo,
    learn,
    prepare_experience,
)
from rlhf_core.trainers.ppo_learner import Learner  # noqa: E402
from rlhf_core.trainers.ppo_watch import PpoState  # noqa: E402


class OneIterationAtATime:
    """A tracker that holds the training loop until the other end asks for an iteration."""

    def __init__(self) -> None:
        worker.answer(ready=True, idle_mb=worker.peak_megabytes())
        self.clock = wait_for_step()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        cost = self.clock.read()
        worker.answer(
            **cost,
            tokens=round(metrics["policy/response_length"] * BATCH),
            finished=metrics["policy/eos_fraction"],
            generate=metrics["policy/seconds_generate"] / cost["wall"],
            score=metrics["policy/seconds_score"] / cost["wall"],
            peak_mb=worker.peak_megabytes(),
        )
        self.clock = wait_for_step()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Not needed."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Not needed."""


def settings(**options: object) -> PpoConfig:
    optimizer = OptimizerConfig(
        learning_rate=LEARNING_RATE,
        adam_beta2=BETA2,
        adam_eps=ADAM_EPS,
        max_grad_norm=MAX_GRAD_NORM,
        schedule="linear",
        warmup_fraction=0.0,
    )
    common = {
        "optimizer": optimizer,
        "num_iterations": 1_000,
        "critic_warmup_iterations": 0,
        "rollout_batch_size": BATCH,
        "num_epochs": EPOCHS,
        "num_minibatches": MINIBATCHES,
        "kl_coef": KL_COEF,
        "value_coef": VALUE_COEF,
        "checkpoint_every": 10_000,
    }
    return PpoConfig.model_validate({**common, **options})


def read_models(folder: Path, configured: PpoConfig) -> PpoModels:
    reference = "reference" if (folder / "reference").exists() else "causal"
    apart = configured.needs_value_model
    return PpoModels(
        policy=load_causal(folder / "causal"),
        reference=load_causal(folder / reference),
        reward_model=load_scalar(folder / "scalar"),
        value_model=load_scalar(folder / "scalar") if apart else None,
    )


def read_data(folder: Path) -> PpoData:
    return PpoData([TokenizedPrompt("", as_token_ids(ids)) for ids in read_prompts(folder)], [EOS])


REPLAYED = {"num_minibatches": 1, "num_iterations": 1, "missing_eos_penalty": None}


def with_sample_deviation(returns: torch.Tensor) -> torch.Tensor:
    """GRPO's advantages as the peer takes them: the deviation divides by G - 1."""
    centered = returns - returns.mean(dim=1, keepdim=True)
    return centered / (returns.std(dim=1, keepdim=True) + GROUP_EPS)


def replay(folder: Path) -> dict[str, object]:
    """Run one iteration on given responses; return what comes out."""
    GROUP_ADVANTAGES["grpo"] = with_sample_deviation
    responses = read_responses(folder)
    configured = settings(**{**REPLAYED, **OPTIONS})
    optimizer = {"learning_rate": REPLAY_LEARNING_RATE, "schedule": "constant"}
    # The peer's PPO never clips gradients.
    optimizer = configured.optimizer.model_copy(update={**optimizer, "max_grad_norm": 1e9})
    configured = configured.model_copy(update={"optimizer": optimizer})
    learner = Learner(read_models(folder, configured), read_data(folder), configured, seed=0)
    shape = (len(responses), len(responses[0]))
    blank = Rollout(
        prompts=[
            prompt.prompt_ids
            for prompt in learner.data.prompts
            for _ in range(configured.responses_per_prompt)
        ],
        responses=[as_token_ids(ids) for ids in responses],
        logprobs=torch.zeros(shape),
        mask=torch.ones(shape, dtype=torch.bool),
        finished=torch.zeros(len(responses), dtype=torch.bool),
    )
    with torch.no_grad():
        logprobs = token_logprobs(learner.models.policy, blank.pack(range(len(responses))))
    rollout = replace(blank, logprobs=logprobs.view(shape))
    scored = score_rollout(rollout, learner.scorers(), budget=4_096)
    state = PpoState(kl_coef=KL_COEF)
    experience, scores, _ = prepare_experience(scored, state, configured)
    metrics = rollout_metrics(scored) | learn(learner, experience, state)
    advantages = experience.advantages  # of the peer too: before they are whitened, if they are
    if experience.values is not None:
        advantages = experience.returns - experience.values
    return {**metrics, "advantages": advantages.tolist(), "score": float(scores.mean())}


def main() -> None:
    folder = Path(sys.argv[2])
    if sys.argv[1] == "replay":
        worker.answer(idle_mb=0, **replay(folder))
        return
    configured = settings(**OPTIONS)
    with tempfile.TemporaryDirectory() as checkpoints:
        fit_ppo(
            read_models(folder, configured),
            read_data(folder),
            settings=configured,
            run=TrainingRun(0, OneIterationAtATime(), CheckpointStore(Path(checkpoints))),
        )


main()
