"""What both sides of the PPO comparison start from: models whose responses end, and prompts."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import worker
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from work import EOS, Size, write_models

PROMPT_TOKENS = (32, 64)
"""Shortest and longest prompt."""
NUM_PROMPTS = 512
BATCH, EPOCHS, MINIBATCHES = 64, 4, 4
GROUP = 4
"""Responses to a prompt in GRPO, out of the batch."""
REPLAY_LEARNING_RATE = 1e-3
"""Large enough that the last epochs meet another policy than the first."""
LEARNING_RATE, ADAM_EPS, KL_COEF, VALUE_COEF = 1e-12, 1e-5, 0.05, 0.1
"""The weights stay what they are while time is taken: at 3e-6 the responses shrank to a third
within two iterations, on each side at its own pace, and the work was no longer the same."""


def write_work(folder: Path, size: Size, *, mean_length: float) -> None:
    """Write ``causal`` and ``scalar`` models and ``prompts.json`` under ``folder``.

    Random weights almost never say EOS. Here every token shares a direction with EOS's output
    embedding, scaled until a response ends with probability 1 / ``mean_length`` at each token.
    """
    write_models(folder, size)
    generator = np.random.default_rng(0)
    lengths = generator.integers(*PROMPT_TOKENS, NUM_PROMPTS, endpoint=True)
    prompts = [generator.integers(4, size.vocabulary, int(length)).tolist() for length in lengths]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    model = AutoModelForCausalLM.from_pretrained(folder / "causal", dtype=torch.float32)
    scalar = AutoModelForSequenceClassification.from_pretrained(
        folder / "scalar", num_labels=1, dtype=torch.float32
    )
    with torch.no_grad():
        direction = torch.randn(size.hidden, generator=torch.Generator().manual_seed(1))
        direction /= direction.norm()
        model.model.embed_tokens.weight += 0.5 * direction
        model.lm_head.weight[EOS] = 0.0
        _calibrate(model, direction, torch.tensor([p[:32] for p in prompts[:32]]), 1 / mean_length)
        scalar.model.load_state_dict(model.model.state_dict())
        scalar.score.weight.normal_(generator=torch.Generator().manual_seed(2))
        scalar.score.weight /= (size.hidden + 1) ** 0.5
    model.save_pretrained(folder / "causal")
    scalar.save_pretrained(folder / "scalar")


def _calibrate(
    model: torch.nn.Module, direction: torch.Tensor, probe: torch.Tensor, probability: float
) -> None:
    low, high = 0.0, 10.0
    for _ in range(30):
        scale = (low + high) / 2
        model.lm_head.weight[EOS] = scale * direction
        found = torch.softmax(model(input_ids=probe).logits, -1)[..., EOS].mean().item()
        low, high = (scale, high) if found < probability else (low, scale)


def write_replay(folder: Path, size: Size, *, length: int, group: int = 1) -> None:
    """Write responses of full ``length`` without EOS, and a reference that is not the policy.

    Each prompt has ``group`` responses, one after the other.

    Full length, for there the two sides mean the same: after an EOS the peer puts the score on the
    position behind it, together with the value of that position.
    """
    generator = np.random.default_rng(1)
    prompts = read_prompts(folder)[: BATCH // group]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    responses = generator.integers(4, size.vocabulary, (BATCH, length)).tolist()
    (folder / "responses.json").write_text(json.dumps(responses))
    model = AutoModelForCausalLM.from_pretrained(folder / "causal", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    model.save_pretrained(folder / "reference")


def read_responses(folder: Path) -> list[list[int]] | None:
    """Return the responses to replay, or None where both sides sample."""
    path = folder / "responses.json"
    return json.loads(path.read_text()) if path.exists() else None


def read_prompts(folder: Path) -> list[list[int]]:
    """Return the prompts' token ids."""
    prompts: list[list[int]] = json.loads((folder / "prompts.json").read_text())
    return prompts


@dataclass(frozen=True)
class Floor:
    """Least seconds each part of an iteration can take on one core."""

    generate: float
    score: float
    update: float


def floor(
    size: Size,
    response_tokens: float,
    rates: dict[str, float],
    *,
    one_trunk: bool = False,
    group: int = 1,
) -> Floor:
    """What the work of an iteration cannot be done without, nothing padded, nothing repeated.

    Every token once through the policy while sampling, once through reference, reward model and
    value model, and in each epoch once through policy and value model, a backward pass counting
    twice; the output head, and what the last layer does for a token beyond its key and value, only
    where the hidden state is read. Sampling also reads all weights and the keys
    and values of every live row for each new token, whichever takes longer. With one trunk the
    values come from the policy's hidden states; in groups there are none, and the responses to one
    prompt share it.

    Args:
        size: of the models.
        response_tokens: of one iteration.
        rates: operations (``rate``) and bytes (``bandwidth``) a second of this machine.
        one_trunk: the policy has a value head.
        group: responses to each prompt; more than one needs no value function.
    """
    prompt_length, response_length = sum(PROMPT_TOKENS) / 2, response_tokens / BATCH
    length = prompt_length + response_length
    weights = size.layers * size.weights_per_layer
    num_prompts = BATCH / group
    prompt_tokens = num_prompts * prompt_length
    pairs = BATCH * length**2 - (BATCH - num_prompts) * prompt_length**2
    trunk = 2.0 * (prompt_tokens + response_tokens) * weights
    trunk += 2.0 * pairs * size.hidden * size.layers
    trunk -= 2.0 * prompt_tokens * size.weights_of_reading
    read_once = 2.0 * (response_tokens - BATCH) * size.weights_of_reading
    head = 2.0 * response_tokens * size.vocabulary * size.hidden
    steps = 2 * response_length  # the longest response; a lower bound on how often weights are read
    context = prompt_length + response_length / 2
    cache = 2.0 * response_tokens * context * size.layers * size.hidden
    read = 4.0 * (steps * (weights + size.vocabulary * size.hidden) + cache)
    trained, scored = (1, 2) if one_trunk or group > 1 else (2, 3)
    return Floor(
        generate=max((trunk + head) / rates["rate"], read / rates["bandwidth"]),
        score=(scored * trunk - read_once + head) / rates["rate"],
        update=EPOCHS * 3 * (trained * trunk + head) / rates["rate"],
    )


def wait_for_step() -> worker.Clock:
    """Wait until the other end asks for an iteration; answer what else it asks meanwhile."""
    for line in sys.stdin:
        if line.strip() == "rate":
            worker.answer(**worker.rates())
        elif line.strip() == "step":
            return worker.Clock()
    os._exit(0)
