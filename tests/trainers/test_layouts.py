"""Every trainer on models that cannot run packed, and on composite ones, against transformers."""

from pathlib import Path

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, random_model
from benchmarks.conversations import FAMILIES
from benchmarks.models import (
    COLUMNS,
    examples,
    measure,
    padded_logprobs,
    published,
    word_tokenizer,
)
from rlhf_core.config import ComputeConfig, LoraConfig, SftConfig
from rlhf_core.models import load_causal, load_scalar, save_model, scalar_from_causal
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.ppo import PpoModels
from rlhf_core.trainers.sft import accumulate_nll, fit_sft
from tests.trainers.ppo_toys import train_ppo
from tests.trainers.test_same_bits import Crash, CrashingTracker

ROOT = Path(__file__).parents[2]
KINDS = {
    "hybrid": "qwen3-next",
    "convolutional": "lfm2",
    "recurrent": "mamba",
    "composite": "gemma3",
    "composite-text": "mistral3",
    "sinks": "gpt-oss",
}


OFTEN = ("recurrent", "composite", "sinks")
"""Hybrid and convolutional layers are in the tests of crashes below."""


@pytest.fixture(
    params=[
        kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS
    ]
)
def name(request):
    return KINDS[request.param]


def test_every_stage_gives_what_plain_transformers_reads_from_its_folder(name, tmp_path):
    outcome = measure(name, tmp_path)
    assert outcome.failures == {}
    assert set(outcome.gaps) == set(COLUMNS)
    assert max(outcome.gaps.values()) < 2e-4, outcome.gaps


def test_gradients_are_those_of_plain_transformers_on_a_padded_batch(name, tmp_path):
    random_model(name).save_pretrained(tmp_path / "base")
    ours, plain, rows = load_causal(tmp_path / "base"), published(tmp_path / "base"), examples(6)
    loss, _ = accumulate_nll(ours, rows, budget=30)
    both = [(row.prompt_ids, row.response_ids) for row in rows]
    expected = -torch.cat(padded_logprobs(plain, both, differentiable=True)).mean()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), abs=1e-5)
    # By shape, for of Mistral 3 the text part alone is ours, and under other names.
    theirs = [weight.grad for weight in plain.parameters() if weight.grad is not None]
    checked = 0
    for weight in ours.parameters():
        if weight.grad is None or not bool(weight.grad.any()):
            continue
        gaps = [
            float((weight.grad - grad).abs().max())
            for grad in theirs
            if grad.shape == weight.grad.shape
        ]
        assert min(gaps) < 1e-4 * max(1.0, float(weight.grad.abs().max()))
        checked += 1
    assert checked > 8


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("qwen3-next", False),
        ("gemma3", True),
        pytest.param("qwen3-next", True, marks=pytest.mark.nightly),
        pytest.param("gemma3", False, marks=pytest.mark.nightly),
    ],
)
def test_sft_that_crashed_ends_in_the_same_bits(name, lora, tmp_path):
    random_model(name).save_pretrained(tmp_path / "base")
    settings = SftConfig(
        num_epochs=2,
        batch_size=8,
        micro_batch_tokens=60,
        checkpoint_every=1,
        compute=ComputeConfig(lora=LoraConfig(rank=2) if lora else None),
    )

    def train(folder, crash_at=None):
        model = load_causal(tmp_path / "base")
        run = TrainingRun(0, CrashingTracker(crash_at), CheckpointStore(folder))
        fit_sft(model, examples(16), examples(4, 1), settings=settings, run=run)
        return save_model(model, word_tokenizer(), folder / "model")

    expected = train(tmp_path / "whole")
    with pytest.raises(Crash):
        train(tmp_path / "cut", crash_at=2)
    assert train(tmp_path / "cut") == expected


def test_ppo_that_crashed_ends_in_the_same_bits(tmp_path):
    base = tmp_path / "base"
    random_model("lfm2").save_pretrained(base)
    reward = tmp_path / "reward"
    save_model(scalar_from_causal(base, seed=0), word_tokenizer(), reward)

    def train(folder, crash_at=None):
        models = PpoModels(
            load_causal(base), load_causal(base), load_scalar(reward), load_scalar(reward)
        )
        return train_ppo(
            base, folder, CrashingTracker(crash_at), models, num_iterations=3, checkpoint_every=1
        )[2]

    expected = train(tmp_path / "whole")
    with pytest.raises(Crash):
        train(tmp_path / "cut", crash_at=2)
    assert train(tmp_path / "cut") == expected


def test_the_page_names_every_architecture_and_family_that_is_measured():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert {*ARCHITECTURES, *FAMILIES} <= rows
