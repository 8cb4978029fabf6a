"""Toy data: a response repeats the prompt's last token; the better one ends with token 3."""

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import transformers as hf

from rlhf_core.config import DpoConfig, OptimizerConfig, RewardConfig, SftConfig
from rlhf_core.models import load_causal, save_model, scalar_from_causal
from rlhf_core.tokenization import TokenizedExample, TokenizedPair
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.dpo import fit_dpo
from rlhf_core.trainers.kto import examples_of_pairs, fit_kto
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.reward import fit_reward_model
from rlhf_core.trainers.sft import fit_sft
from tests.models.conftest import FakeTokenizer

VOCAB, EOS = 24, 2


def toy_config():
    return hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=EOS,
        pad_token_id=0,
    )


@lru_cache(maxsize=16)
def _loaded(load, *given, **options):
    return load(*given, **options)


def fresh(load, *given, **options):
    """Return a model as ``load`` gives it: read once, then copied.

    A training of a few steps loads four models, which took a third of its time.
    """
    return copy.deepcopy(_loaded(load, *given, **options))


def ids(*tokens):
    return np.asarray(tokens, dtype=np.int32)


def toy_examples(num, seed=0):
    generator = np.random.default_rng(seed)
    examples = []
    for index in range(num):
        prompt = generator.integers(4, VOCAB, generator.integers(2, 7))
        response = [int(prompt[-1])] * int(generator.integers(1, 5))
        examples.append(TokenizedExample(str(index), ids(1, *prompt), ids(*response, EOS)))
    return examples


def toy_pairs(num, seed=0, prompts=None):
    generator = np.random.default_rng(seed)
    openings = [
        ids(1, *generator.integers(4, VOCAB, generator.integers(2, 7)))
        for _ in range(prompts or num)
    ]
    pairs = []
    for index in range(num):
        shared = generator.integers(4, VOCAB, generator.integers(1, 5))
        pairs.append(
            TokenizedPair(
                pair_id=str(index),
                prompt_ids=openings[index % len(openings)],
                chosen_ids=ids(*shared, 3, EOS),
                rejected_ids=ids(*shared, int(generator.integers(4, VOCAB)), EOS),
                probability=float(generator.uniform(0.6, 1.0)),
            )
        )
    return pairs


class ListTracker:
    """Keeps what it is told."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))

    def log_params(self, params):
        pass

    def log_artifact(self, path, folder=""):
        pass

    def series(self, name):
        return [metrics[name] for _, metrics in self.rows if name in metrics]


class ListObserver:
    """Keeps what a training tells."""

    def __init__(self):
        self.steps, self.spikes = [], []

    def step(self, trainer, done, total, metrics):
        self.steps.append((trainer, done, total, dict(metrics)))

    def kl_spike(self, action, message):
        self.spikes.append((action, message))


STAGES = ("sft", "reward", "dpo", "kto")
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.1)
MANY_PASSES = {"micro_batch_tokens": 40}
"""A batch in two to four micro-batches; else it is one, for most tests are not about that."""


def train_stage(
    stage,
    causal: Path,
    work: Path,
    tracker=None,
    observer=None,
    shard="none",
    keep=lambda rows: rows,
    **changes,
):
    """Train one stage from ``causal`` in ``work``; return summary, model and weights' sha256.

    ``keep`` says what becomes of the rows before they are given to the trainer.
    """
    store = CheckpointStore(work / "checkpoints")
    run = TrainingRun(0, tracker or ListTracker(), store, observer, shard)
    common = {
        "batch_size": 8,
        "micro_batch_tokens": 200,
        "num_epochs": 2,
        "checkpoint_every": 3,
        "optimizer": OPTIMIZER,
        **changes,
    }
    if stage == "sft":
        model = fresh(load_causal, causal)
        summary = fit_sft(
            model,
            keep(toy_examples(64)),
            keep(toy_examples(16, 1)),
            settings=SftConfig(**common),
            run=run,
        )
    elif stage == "reward":
        model = fresh(scalar_from_causal, causal, seed=0)
        summary = fit_reward_model(
            model,
            keep(toy_pairs(64, prompts=40)),
            keep(toy_pairs(16, 1)),
            toy_examples(8),
            settings=RewardConfig(**common),
            run=run,
        )
    elif stage == "kto":
        model = fresh(load_causal, causal)
        summary = fit_kto(
            model,
            keep(list(examples_of_pairs(toy_pairs(48)))[::3]),
            keep(list(examples_of_pairs(toy_pairs(16, 1)))[::3]),
            settings=DpoConfig(**{"loss": "kto", **common}),
            run=run,
        )
    else:
        model = fresh(load_causal, causal)
        summary = fit_dpo(
            model,
            fresh(load_causal, causal),
            keep(toy_pairs(64, prompts=40)),
            keep(toy_pairs(16, 1)),
            settings=DpoConfig(**common),
            run=run,
        )
    return summary, model, save_model(model, FakeTokenizer(), work / "model")
