"""Our side: one optimiser step of a stage on the whole batch (ours.py STAGE FOLDER OPTIONS)."""

import json
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
import worker
from work import BETA2, DPO_BETA, LEARNING_RATE, MAX_GRAD_NORM, read_rows

sys.stdout = sys.stderr
worker.take_threads()

from rlhf_core.config import ComputeConfig, DpoConfig, OptimizerConfig, SftConfig  # noqa: E402
from rlhf_core.models import load_causal, load_scalar, prepare_training  # noqa: E402
from rlhf_core.tokenization import (  # noqa: E402
    TokenizedExample,
    TokenizedPair,
    as_token_ids,
)
from rlhf_core.trainers.dpo import DpoObjective, pair_logprobs  # noqa: E402
from rlhf_core.trainers.loop import Optimization  # noqa: E402
from rlhf_core.trainers.reward import accumulate_pairs  # noqa: E402
from rlhf_core.trainers.sft import accumulate_nll  # noqa: E402

Step = Callable[[], dict[str, float]]


def main() -> None:
    stage, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    budget = options.get("micro_batch_tokens", SftConfig().micro_batch_tokens)
    compute = ComputeConfig(**options.get("compute", {}))
    load = load_scalar if stage == "reward" else load_causal
    kind = "scalar" if stage == "reward" else "causal"
    model = prepare_training(load(folder / kind), compute, seed=0)
    optimizer = OptimizerConfig(
        learning_rate=LEARNING_RATE,
        adam_beta2=BETA2,
        max_grad_norm=MAX_GRAD_NORM,
        schedule="constant",
        warmup_fraction=0.0,
    )
    optimization = Optimization(model, optimizer, total_steps=1_000)
    if stage == "sft":
        accumulate = sft_work(model, folder, budget, options.get("batch"))
    elif stage == "reward":
        accumulate = reward_work(model, folder, budget)
    else:
        reference = load_causal(folder / "causal") if options.get("reference_each_step") else None
        accumulate = dpo_work(model, reference, folder, budget)

    def step() -> dict[str, float]:
        loss, num_tokens = accumulate()
        applied = optimization.apply(loss)
        return {"loss": loss, "tokens": num_tokens, "grad_norm": applied["grad_norm"]}

    worker.serve(step)


def sft_work(
    model: torch.nn.Module, folder: Path, budget: int, batch_size: int | None
) -> Callable[[], tuple[float, int]]:
    """Train on all rows in each step, or on the next ``batch_size`` of them."""
    examples = [
        TokenizedExample("", as_token_ids(row["prompt_ids"]), as_token_ids(row["response_ids"]))
        for row in read_rows(folder, "demonstrations")
    ]
    size = batch_size or len(examples)
    starts = cycle(range(0, len(examples), size))

    def work() -> tuple[float, int]:
        start = next(starts)
        return accumulate_nll(model, examples[start : start + size], budget=budget)

    return work


def read_pairs(folder: Path) -> list[TokenizedPair]:
    return [
        TokenizedPair(
            "",
            as_token_ids(row["prompt_ids"]),
            as_token_ids(row["chosen_ids"]),
            as_token_ids(row["rejected_ids"]),
        )
        for row in read_rows(folder, "pairs")
    ]


def reward_work(
    model: torch.nn.Module, folder: Path, budget: int
) -> Callable[[], tuple[float, int]]:
    pairs = read_pairs(folder)

    def work() -> tuple[float, int]:
        measures, num_tokens = accumulate_pairs(model, pairs, budget=budget)
        return float(measures.losses.mean()), num_tokens

    return work


def dpo_work(
    model: torch.nn.Module, reference: torch.nn.Module | None, folder: Path, budget: int
) -> Callable[[], tuple[float, int]]:
    pairs = read_pairs(folder)
    objective = DpoObjective(model, DpoConfig(beta=DPO_BETA, micro_batch_tokens=budget))
    precomputed = pair_logprobs(model, pairs, budget=budget)

    def work() -> tuple[float, int]:
        logprobs = precomputed
        if reference is not None:
            logprobs = pair_logprobs(reference, pairs, budget=budget)
        measures, num_tokens = objective.accumulate(pairs, logprobs)
        return float(measures.losses.mean()), num_tokens

    return work


main()
