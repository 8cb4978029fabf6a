"""Sample responses and have every model say what it thinks of them: one packing, one pass each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_core.rollout.decode import Sampling, decode
from rlhf_core.rollout.experience import Rollout, ScoredRollout
from rlhf_core.tokenization import TokenBatch, TokenIds


def sample_rollout(
    policy: nn.Module,
    prompts: Sequence[TokenIds],
    *,
    uniforms: Tensor,
    sampling: Sampling,
    budget: int,
) -> Rollout:
    """Answer each prompt once; see ``decode`` for the arguments."""
    decoded = decode(policy, prompts, uniforms=uniforms, sampling=sampling, budget=budget)
    lengths = decoded.lengths.tolist()
    width = max(lengths)
    tokens = decoded.tokens[:, :width].cpu().numpy().astype(np.int32)
    columns = torch.arange(width, device=decoded.lengths.device)
    return Rollout(
        prompts=prompts,
        responses=[row[:length] for row, length in zip(tokens, lengths, strict=True)],
        # Clones, for tensors made in inference mode cannot take part in autograd.
        logprobs=decoded.logprobs[:, :width].clone(),
        mask=columns < decoded.lengths[:, None],
        finished=decoded.finished.clone(),
        values=None if sampling.value_head is None else decoded.values[:, :width].clone(),
    )


@dataclass(frozen=True)
class Scorers:
    """Who is asked about a packed batch of B sequences and M response tokens."""

    scores: Callable[[TokenBatch], Tensor]
    """[B] reward-model scores."""
    ref_logprobs: Callable[[TokenBatch], Tensor]
    """[M] log-probabilities under the reference, nats."""
    values: Callable[[TokenBatch], Tensor] | None
    """[M] value before each token; None where the rollout has them or nobody needs them."""
    old_logprobs: Callable[[TokenBatch], Tensor] | None
    """[M] log-probabilities that importance ratios refer to; None takes the sampler's."""


def score_rollout(rollout: Rollout, scorers: Scorers, *, budget: int) -> ScoredRollout:
    """Ask every model once about every response.

    Args:
        rollout: what was sampled.
        scorers: the models.
        budget: tokens per forward pass; does not change the result.
    """
    asked = {"scores": scorers.scores, "ref_logprobs": scorers.ref_logprobs}
    if scorers.values is not None:
        asked["values"] = scorers.values
    if scorers.old_logprobs is not None:
        asked["old_logprobs"] = scorers.old_logprobs
    answers: dict[str, list[Tensor]] = {name: [] for name in asked}
    with torch.inference_mode():
        for rows in rollout.micro_batches(range(rollout.num_rows), budget=budget):
            batch = rollout.pack(rows)
            for name, ask in asked.items():
                answers[name].append(ask(batch))
    # Joined outside of inference mode, whose tensors cannot take part in autograd.
    joined = {name: torch.cat(parts) for name, parts in answers.items()}
    scores = joined.pop("scores")
    blank = torch.zeros_like(rollout.logprobs)
    padded = {name: blank.masked_scatter(rollout.mask, column) for name, column in joined.items()}
    return ScoredRollout(
        rollout=rollout,
        old_logprobs=padded.get("old_logprobs", rollout.logprobs),
        ref_logprobs=padded["ref_logprobs"],
        values=padded.get("values", rollout.values),
        scores=scores,
    )
