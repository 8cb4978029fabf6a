"""A toy world for PPO: the reward is (a rising function of) the share of token 3 in a text."""

from pathlib import Path

import numpy as np
import torch

from rlhf_core.config import ComputeConfig, KlWatchConfig, LoraConfig, OptimizerConfig, PpoConfig
from rlhf_core.models import load_causal, load_scalar, save_model, scalar_from_causal
from rlhf_core.tokenization import TokenizedPrompt
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.ppo import PpoData, PpoModels, fit_ppo
from tests.models.conftest import FakeTokenizer
from tests.trainers.toys import EOS, VOCAB, ListTracker, fresh, ids, toy_examples

GOOD = 3


def toy_prompts(num=20, seed=0):
    generator = np.random.default_rng(seed)
    return [
        TokenizedPrompt(str(index), ids(1, *generator.integers(4, VOCAB, generator.integers(1, 7))))
        for index in range(num)
    ]


@torch.no_grad()
def reward_model(causal: Path):
    """Weights set by hand: uniform attention averages a feature that only token 3 has."""
    model = scalar_from_causal(causal, seed=0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.zero_()
    trunk = model.model
    trunk.embed_tokens.weight[:, 1] = 1.0
    trunk.embed_tokens.weight[GOOD, 0] = 4.0
    attention = trunk.layers[0].self_attn
    attention.v_proj.weight[0, 0] = 1.0
    attention.o_proj.weight[0, 0] = 1.0
    model.score.weight[0, 0] = 1.0
    return model


def reward_directory(causal: Path) -> Path:
    """Return where the reward model of ``causal`` lies: beside it, made once."""
    directory = causal.with_name(f"{causal.name}-reward")
    if not directory.exists():
        save_model(reward_model(causal), FakeTokenizer(), directory)
    return directory


def toy_models(causal: Path, *, value_model=True, lora=False) -> PpoModels:
    rewards = reward_directory(causal)
    return PpoModels(
        policy=fresh(load_causal, causal),
        reference=None if lora else fresh(load_causal, causal),
        reward_model=fresh(load_scalar, rewards),
        value_model=fresh(load_scalar, rewards) if value_model else None,
    )


def toy_settings(**changes) -> PpoConfig:
    common = {
        "num_iterations": 6,
        "critic_warmup_iterations": 1,
        "rollout_batch_size": 16,
        "num_epochs": 2,
        "num_minibatches": 2,
        "max_new_tokens": 8,
        "micro_batch_tokens": 300,
        "checkpoint_every": 2,
        "optimizer": OptimizerConfig(
            learning_rate=1e-2,
            adam_beta2=0.999,
            adam_eps=1e-5,
            schedule="linear",
            warmup_fraction=0.0,
        ),
        "kl_watch": KlWatchConfig(max_kl_per_token=None),
    }
    if changes.get("advantages", "gae") != "gae":
        del common["critic_warmup_iterations"]
    return PpoConfig(**{**common, **changes})


MANY_PASSES = {"micro_batch_tokens": 60}
"""Four turns to sample, score and learn; else it is one, for most tests are not about that."""
RLOO = {"advantages": "rloo", "responses_per_prompt": 4}
GRPO = {
    "advantages": "grpo",
    "responses_per_prompt": 4,
    "kl_placement": "loss",
    "kl_estimator": "k3",
}
DR_GRPO = {**GRPO, "advantages": "dr_grpo", "clip_eps_high": 0.28}
ONE_TRUNK = {"share_trunk": True, "value_learning_rate": 1e-2}
VARIANTS = {
    "default": {},
    "four-responses-per-prompt": {"responses_per_prompt": 4, **MANY_PASSES},
    "shared-trunk": ONE_TRUNK,
    "kl-as-loss-and-ptx": {
        "kl_placement": "loss",
        "kl_estimator": "k3",
        "kl_controller": "adaptive",
        "target_kl": 0.5,
        "ptx_coef": 0.1,
        "scale_scores": True,
        "clip_scores": 2.0,
    },
    "lora-and-checkpointing": {
        "compute": ComputeConfig(lora=LoraConfig(rank=4), gradient_checkpointing=True)
    },
    "rloo-adaptive-kl-and-ptx": {
        **RLOO,
        **MANY_PASSES,
        "kl_controller": "adaptive",
        "target_kl": 0.5,
        "ptx_coef": 0.1,
        "scale_scores": True,
    },
    "grpo-and-lora": {**GRPO, "compute": ComputeConfig(lora=LoraConfig(rank=4))},
}
"""Settings that take the trainer through every branch."""


def toy_data(keep=lambda rows: rows):
    return PpoData(keep(toy_prompts()), [EOS], keep(toy_examples(10)))


def train_ppo(
    causal: Path,
    work: Path,
    tracker=None,
    models=None,
    observer=None,
    shard="none",
    keep=lambda rows: rows,
    **changes,
):
    """Train in ``work``; return summary, models and the policy's sha256.

    ``keep`` says what becomes of the rows before they are given to the trainer.
    """
    settings = toy_settings(**changes)
    models = models or toy_models(
        causal,
        value_model=settings.needs_value_model,
        lora=settings.compute.lora is not None,
    )
    store = CheckpointStore(work / "checkpoints")
    summary = fit_ppo(
        models,
        toy_data(keep),
        settings=settings,
        run=TrainingRun(0, tracker or ListTracker(), store, observer, shard),
    )
    return summary, models, save_model(models.policy, FakeTokenizer(), work / "model")
