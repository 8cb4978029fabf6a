"""Which architectures and conversations go through every stage: writes docs/models.md.

.venv/bin/python -m benchmarks.models                    # all of it, some ten minutes
.venv/bin/python -m benchmarks.models --only mamba lfm2  # prints, writes nothing
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.architectures import ARCHITECTURES, REFUSED, VOCAB, random_model
from rlhf_core.config import DpoConfig, OptimizerConfig, PpoConfig, RewardConfig, SftConfig
from rlhf_core.errors import ModelError
from rlhf_core.models import load_causal, load_scalar, save_model, scalar_from_causal
from rlhf_core.models.layout import layout_of
from rlhf_core.rollout.decode import Sampling, decode
from rlhf_core.tokenization import TokenizedExample, TokenizedPair, TokenizedPrompt
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.dpo import fit_dpo
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.ppo import PpoData, PpoModels, fit_ppo
from rlhf_core.trainers.reward import fit_reward_model
from rlhf_core.trainers.sft import fit_sft

EOS = 2
LAST_TEXT_ID = 80
"""Ids above it stand for images in the composite models."""
STAGES = ("sft", "reward", "ppo", "dpo")
COLUMNS = (*STAGES, "sampling", "generate")
TOLERANCE = 1e-3
"""Largest difference that counts as rounding: these models' weights are four times as large as
fresh ones, and a wrong mask or layout gives 0.1 and more."""


class ListTracker:
    """Keeps the metrics of a run in memory."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))

    def log_params(self, params: Any) -> None: ...

    def log_artifact(self, path: Path, folder: str = "") -> None: ...

    def last(self, name: str) -> float:
        return next(metrics[name] for _, metrics in reversed(self.rows) if name in metrics)


@dataclass
class Outcome:
    """What one architecture came to."""

    name: str
    layout: str = ""
    gaps: dict[str, float] = field(default_factory=dict)
    """Largest difference against plain transformers by stage; nats, or units of score."""
    failures: dict[str, str] = field(default_factory=dict)
    own_classifier: bool = False
    """The reward model's class is this project's, for transformers has none."""

    @property
    def works(self) -> bool:
        return not self.failures and all(gap < TOLERANCE for gap in self.gaps.values())


def measure(name: str, folder: Path, *, stages: Sequence[str] = COLUMNS) -> Outcome:
    """Train one architecture a few steps in every stage, and read each saved folder plainly.

    Args:
        name: of ``ARCHITECTURES``.
        folder: receives the models.
        stages: which of ``COLUMNS``.
    """
    base = folder / "base"
    random_model(name).save_pretrained(base)
    word_tokenizer().save_pretrained(base)
    model = load_causal(base)
    layout = layout_of(model)
    outcome = Outcome(name, "packed" if layout.packed else "by length")
    if layout.packed and not layout.in_block:
        outcome.layout += ", sampled by length"
    if not layout.in_block and not layout.cached:
        outcome.layout += ", no cache"
    checks: dict[str, Callable[[Path], float]] = {
        "sft": sft_gap,
        "reward": reward_gap,
        "ppo": ppo_gap,
        "dpo": dpo_gap,
        "sampling": sampling_gap,
        "generate": generate_gap,
    }
    for stage in stages:
        try:
            outcome.gaps[stage] = checks[stage](folder)
        except Exception as error:
            outcome.failures[stage] = f"{type(error).__name__}: {error}"
    if "reward" in outcome.gaps:
        outcome.own_classifier = not has_classifier(load_scalar(folder / "reward"))
    return outcome


def sft_gap(folder: Path) -> float:
    """Held-out loss of SFT, as reported, against that of the saved folder."""
    model, heldout = load_causal(folder / "base"), examples(8, seed=1)
    settings = SftConfig(num_epochs=1, batch_size=8, micro_batch_tokens=60, optimizer=_OPTIMIZER)
    run = new_run(folder / "sft-run")
    summary = fit_sft(model, examples(16), heldout, settings=settings, run=run)
    save_model(model, word_tokenizer(), folder / "sft")
    rows = [(example.prompt_ids, example.response_ids) for example in heldout]
    logprobs = torch.cat(padded_logprobs(published(folder / "sft"), rows))
    return abs(summary.metrics["sft/heldout_nll"] + float(logprobs.mean()))


def reward_gap(folder: Path) -> float:
    """Held-out margin of the reward model, as reported, against that of the saved folder."""
    model, heldout = scalar_from_causal(folder / "base", seed=0), pairs(8, seed=1)
    settings = RewardConfig(num_epochs=1, batch_size=8, micro_batch_tokens=60, optimizer=_OPTIMIZER)
    summary = fit_reward_model(
        model, pairs(16), heldout, examples(4), settings=settings, run=new_run(folder / "rm-run")
    )
    save_model(model, word_tokenizer(), folder / "reward")
    plain = hf.AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", dtype=torch.float32
    ).eval()
    margins = [
        plain_score(plain, pair.prompt_ids, pair.chosen_ids)
        - plain_score(plain, pair.prompt_ids, pair.rejected_ids)
        for pair in heldout
    ]
    return abs(summary.metrics["reward/heldout_margin"] - float(np.mean(margins)))


def ppo_gap(folder: Path) -> float:
    """Two iterations of PPO with a value model; sampled log-probabilities against plain ones.

    The largest of: the first ratio's distance from 1, the KL of the untrained policy, and the
    distance of the trained policy's log-probabilities from those of its saved folder.
    """
    reward = folder / "reward"
    models_ = PpoModels(
        policy=load_causal(folder / "base"),
        reference=load_causal(folder / "base"),
        reward_model=load_scalar(reward),
        value_model=load_scalar(reward),
    )
    settings = PpoConfig(
        num_iterations=2, critic_warmup_iterations=0, rollout_batch_size=8, num_epochs=1,
        num_minibatches=2, max_new_tokens=6, micro_batch_tokens=60, optimizer=_OPTIMIZER,
    )  # fmt: skip
    tracker = ListTracker()
    data = PpoData([TokenizedPrompt(e.example_id, e.prompt_ids) for e in examples(12)], [EOS])
    fit_ppo(models_, data, settings=settings, run=new_run(folder / "ppo-run", tracker))
    save_model(models_.policy, word_tokenizer(), folder / "ppo")
    first = tracker.rows[0][1]
    gap = _folder_gap(folder / "ppo", models_.policy)
    return max(gap, abs(first["policy/kl"]), tracker.last("policy/first_ratio_error"))


def dpo_gap(folder: Path) -> float:
    """Held-out margin of DPO, as reported, against that of base and saved folder."""
    heldout, policy = pairs(8, seed=1), load_causal(folder / "base")
    settings = DpoConfig(num_epochs=1, batch_size=8, micro_batch_tokens=60, optimizer=_OPTIMIZER)
    summary = fit_dpo(
        policy, load_causal(folder / "base"), pairs(16), heldout,
        settings=settings, run=new_run(folder / "dpo-run"),
    )  # fmt: skip
    save_model(policy, word_tokenizer(), folder / "dpo")
    rows = [(pair.prompt_ids, pair.chosen_ids) for pair in heldout]
    rows += [(pair.prompt_ids, pair.rejected_ids) for pair in heldout]
    trained, before = (
        torch.stack([part.sum() for part in padded_logprobs(published(folder / part), rows)])
        for part in ("dpo", "base")
    )
    rewards = settings.beta * (trained - before)
    margin = float((rewards[: len(heldout)] - rewards[len(heldout) :]).mean())
    return abs(summary.metrics["policy/heldout_margin"] - margin)


@torch.no_grad()
def sampling_gap(folder: Path) -> float:
    """Log-probabilities with which SFT's model samples against plain ones of the same tokens."""
    model = load_causal(folder / "sft")
    prompts = [example.prompt_ids for example in examples(6, seed=2)]
    generator = torch.Generator().manual_seed(0)
    decoded = decode(
        model, prompts, uniforms=torch.rand(6, 8, generator=generator),
        sampling=Sampling(1.0, [EOS]), budget=60,
    )  # fmt: skip
    lengths = decoded.lengths.tolist()
    rows = [
        (prompt, decoded.tokens[row, : lengths[row]].numpy()) for row, prompt in enumerate(prompts)
    ]
    plain = padded_logprobs(published(folder / "sft"), rows)
    gaps = [
        float((decoded.logprobs[row, : lengths[row]] - logprobs).abs().max())
        for row, logprobs in enumerate(plain)
    ]
    return max(gaps)


def generate_gap(folder: Path) -> float:
    """Share of greedy answers in which ``generate`` from the saved folder writes other tokens."""
    model, plain = load_causal(folder / "sft"), published(folder / "sft")
    prompts = [example.prompt_ids for example in examples(6, seed=3)]
    decoded = decode(
        model, prompts, uniforms=torch.zeros(6, 8), sampling=Sampling(0.0, [EOS]), budget=60
    )
    differ = 0
    for row, prompt in enumerate(prompts):
        answer = plain.generate(
            input_ids=torch.from_numpy(prompt)[None].long(), do_sample=False, max_new_tokens=8,
            eos_token_id=EOS, pad_token_id=0,
        )  # fmt: skip
        ours = decoded.tokens[row, : int(decoded.lengths[row])].tolist()
        differ += ours != answer[0, len(prompt) :].tolist()
    return differ / len(prompts)


@torch.no_grad()
def _folder_gap(directory: Path, model: hf.PreTrainedModel) -> float:
    from rlhf_core.models import token_logprobs
    from rlhf_core.tokenization import pack_responses

    rows = [(example.prompt_ids, example.response_ids) for example in examples(8, seed=4)]
    ours = token_logprobs(model, pack_responses(*map(list, zip(*rows, strict=True))))
    plain = torch.cat(padded_logprobs(published(directory), rows))
    return float((ours - plain).abs().max())


def published(directory: Path) -> Any:
    """Load a folder as its users do."""
    config = hf.AutoConfig.from_pretrained(directory)
    causal = type(config) in hf.AutoModelForCausalLM._model_mapping
    kind: Any = hf.AutoModelForCausalLM if causal else hf.AutoModelForImageTextToText
    return kind.from_pretrained(directory, dtype=torch.float32).eval()


def padded_logprobs(
    model: Any, rows: Sequence[tuple[Any, Any]], *, differentiable: bool = False
) -> list[torch.Tensor]:
    """Log-probabilities of each response's tokens, all rows in one batch, padded on the right."""
    sequences = [[*prompt.tolist(), *response.tolist()] for prompt, response in rows]
    width = max(map(len, sequences))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in sequences])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])
    with torch.set_grad_enabled(differentiable):
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float()
    every = torch.log_softmax(logits, -1)
    return [
        every[index, range(len(prompt) - 1, len(prompt) + len(response) - 1), response.tolist()]
        for index, (prompt, response) in enumerate(rows)
    ]


@torch.no_grad()
def plain_score(model: Any, prompt: Any, response: Any) -> float:
    """Score of one sequence; by trunk and head where transformers has no classifier of its own."""
    tokens = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    if has_classifier(model):
        return float(model(input_ids=tokens).logits[0, 0])
    states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return float(model.score(states[0, -1]))


def has_classifier(model: Any) -> bool:
    """Say whether a transformers without this project loads and runs the reward model."""
    return hasattr(hf, type(model).__name__)


def new_run(folder: Path, tracker: ListTracker | None = None) -> TrainingRun:
    return TrainingRun(
        seed=0, tracker=tracker or ListTracker(), checkpoints=CheckpointStore(folder)
    )


_OPTIMIZER = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_fraction=0.0)


def examples(num: int, seed: int = 0) -> list[TokenizedExample]:
    """Draw demonstrations of unequal lengths that share a prompt here and there."""
    generator = np.random.default_rng(seed)
    prompts = [_ids(generator, 2, 9) for _ in range(num)]
    return [
        TokenizedExample(str(i), prompts[i - i % 3 % 2], _ids(generator, 1, 7, EOS))
        for i in range(num)
    ]


def pairs(num: int, seed: int = 0) -> list[TokenizedPair]:
    """Draw pairs whose two responses are of unequal lengths."""
    generator = np.random.default_rng(seed)
    return [
        TokenizedPair(
            pair_id=str(index),
            prompt_ids=_ids(generator, 2, 9),
            chosen_ids=_ids(generator, 1, 7, EOS),
            rejected_ids=_ids(generator, 1, 7, EOS),
            probability=1.0,
        )
        for index in range(num)
    ]


def _ids(generator: np.random.Generator, shortest: int, end: int, *last: int) -> Any:
    drawn = generator.integers(4, LAST_TEXT_ID, generator.integers(shortest, end))
    return np.asarray([*drawn, *last], dtype=np.int32)


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Return a tokenizer with a word for every id of the tiny models."""
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", eos_token="w2")


def refusals() -> dict[str, str]:
    """What loading says of each architecture that no layout can honour."""
    said = {}
    for name in REFUSED:
        with tempfile.TemporaryDirectory() as folder:
            random_model(name).save_pretrained(folder)
            try:
                load_causal(folder)
            except ModelError as error:
                said[name] = str(error).replace(f"{folder}: ", "")
    return said


def measured(names: Sequence[str]) -> list[Outcome]:
    outcomes = []
    for number, name in enumerate(names, start=1):
        with tempfile.TemporaryDirectory() as folder:
            outcome = measure(name, Path(folder))
        outcomes.append(outcome)
        gaps = " ".join(f"{stage} {gap:.1e}" for stage, gap in outcome.gaps.items())
        told = "; ".join(f"{stage}: {text}" for stage, text in outcome.failures.items())
        print(f"{number:3} {name:18} {outcome.layout:20} {gaps} {told}", flush=True)
    return outcomes


def main() -> int:
    from benchmarks.conversations import FAMILIES, measure_family
    from benchmarks.models_page import write_page

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("docs/models.md"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    hf.utils.logging.disable_progress_bar()
    outcomes = measured(arguments.only or list(ARCHITECTURES))
    families = []
    for name in [] if arguments.only else FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            families.append(measure_family(name, Path(folder)))
        print(families[-1], flush=True)
    if not arguments.only:
        write_page(arguments.output, outcomes, refusals(), families)
    return 0 if all(one.works for one in [*outcomes, *families]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
