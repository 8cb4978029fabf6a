"""Sample responses and have every model say what it thinks of them: one packing, one pass each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.models.sharding import in_step, without_gradients
from rlhf_core.rollout.decode import Decoded, Sampling
from rlhf_core.rollout.experience import Rollout, ScoredRollout
from rlhf_core.rollout.sampler import Draws, Sampler
from rlhf_core.tokenization import TokenBatch, TokenIds


def sample_rollout(
    policy: nn.Module,
    prompts: Sequence[TokenIds],
    *,
    sampler: Sampler,
    draws: Draws,
    sampling: Sampling,
    budget: int,
) -> Rollout:
    """Answer each prompt once, the processes a share each; see ``Sampler`` for the arguments."""
    own = sampler.sample(
        policy,
        processes.share(prompts),
        draws=replace(draws, streams=processes.share(draws.streams)),
        sampling=sampling,
        budget=budget,
    )
    shares = (getattr(own, field.name) for field in fields(Decoded))
    decoded = Decoded(*(processes.gather_rows(part, len(prompts)) for part in shares))
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
    policy: nn.Module
    """Where its layers are divided among processes, those of all that are asked are."""


def score_rollout(rollout: Rollout, scorers: Scorers, *, budget: int) -> ScoredRollout:
    """Ask every model once about every response, the processes about a share each.

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
    own_runs = rollout.micro_batches(processes.share(range(rollout.num_rows)), budget=budget)
    with without_gradients(scorers.policy):
        for rows in in_step(scorers.policy, own_runs):
            batch = rollout.pack(rows)
            for name, ask in asked.items():
                answer = ask(batch)
                answers[name] += [answer] if rows else []  # that of an idle pass is nobody's
    # Joined outside of inference mode, whose tensors cannot take part in autograd.
    joined = {name: torch.cat(parts) for name, parts in answers.items()}
    scores = processes.gather_rows(joined.pop("scores"), rollout.num_rows)
    mask = processes.share(rollout.mask)
    blank = torch.zeros_like(processes.share(rollout.logprobs))
    padded = {
        name: processes.gather_rows(blank.masked_scatter(mask, column), rollout.num_rows)
        for name, column in joined.items()
    }
    return ScoredRollout(
        rollout=rollout,
        old_logprobs=padded.get("old_logprobs", rollout.logprobs),
        ref_logprobs=padded["ref_logprobs"],
        values=padded.get("values", rollout.values),
        scores=scores,
    )
