"""Every trainer on every kind of model: Llama, Qwen, GPT-2, Gemma."""

import pytest
import torch
import transformers as hf

from rlhf_core.models import load_causal, load_scalar, save_model, scalar_from_causal
from rlhf_core.trainers.ppo import PpoModels
from tests.models.conftest import FakeTokenizer
from tests.trainers.ppo_toys import train_ppo
from tests.trainers.toys import EOS, VOCAB, ListTracker, train_stage

_IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
_SIZES = {
    **_IDS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
ARCHITECTURES = {
    "llama": lambda: hf.LlamaConfig(**_SIZES),
    "qwen3": lambda: hf.Qwen3Config(**_SIZES, head_dim=8, tie_word_embeddings=True),
    "gpt2": lambda: hf.GPT2Config(**_IDS, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gemma2": lambda: hf.Gemma2Config(**_SIZES, head_dim=8, sliding_window=4),
}


BY_NIGHT = ("llama",)
"""The toys of all other tests are Llamas."""


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.nightly) if name in BY_NIGHT else name
        for name in ARCHITECTURES
    ]
)
def directory(request, tmp_path):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(ARCHITECTURES[request.param]())
    model.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


SHORT = {"micro_batch_tokens": 300, "num_epochs": 3}


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_supervised_trainers_learn(stage, directory, tmp_path):
    tracker = ListTracker()
    train_stage(stage, directory, tmp_path / "work", tracker, **SHORT)
    name = "sft/heldout_nll" if stage == "sft" else f"{'policy' if stage == 'dpo' else stage}/loss"
    losses = tracker.series(name)
    assert min(losses[-4:]) < 0.9 * losses[0]
    load = load_scalar if stage == "reward" else load_causal
    load(tmp_path / "work" / "model")


def test_ppo_raises_its_reward(directory, tmp_path):
    save_model(scalar_from_causal(directory, seed=3), FakeTokenizer(), tmp_path / "reward")
    models = PpoModels(
        policy=load_causal(directory),
        reference=load_causal(directory),
        reward_model=load_scalar(tmp_path / "reward"),
        value_model=load_scalar(tmp_path / "reward"),
    )
    tracker = ListTracker()
    train_ppo(
        directory, tmp_path, tracker, models, kl_coef=0.0, missing_eos_penalty=None,
        rollout_batch_size=32, micro_batch_tokens=600,
    )  # fmt: skip
    scores = tracker.series("policy/score_mean")
    assert max(scores[-2:]) > scores[0]
    assert abs(tracker.series("policy/kl")[0]) < 1e-4
    assert max(tracker.series("policy/first_ratio_error")) < 1e-4
    load_causal(tmp_path / "model")
