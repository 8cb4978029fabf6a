"""KTO on responses with good or bad labels, which are no pairs (Ethayarajh 2024)."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.config import DpoConfig
from rlhf_core.config.dpo import MOST_DESIRABLE, balancing_weights
from rlhf_core.errors import DataError
from rlhf_core.functional.dpo import implicit_rewards, unpaired_kto_loss
from rlhf_core.models import device_of, prepare_training, token_logprobs
from rlhf_core.models.sharding import in_step
from rlhf_core.tokenization import (
    Rows,
    TokenBatch,
    TokenizedPair,
    TokenizedUnpaired,
    pack_responses,
)
from rlhf_core.trainers.loop import FitSummary, TrainingRun, plan_batches, split_by_tokens
from rlhf_core.trainers.preference import (
    PreferenceData,
    fit_objective,
    places_of_other_prompts,
    require_pairs,
)
from rlhf_core.trainers.state import run_fingerprint

logger = logging.getLogger(__name__)


def fit_kto(
    policy: nn.Module,
    train: Sequence[TokenizedUnpaired],
    heldout: Sequence[TokenizedUnpaired],
    *,
    settings: DpoConfig,
    run: TrainingRun,
) -> FitSummary:
    """Train ``policy`` in place with KTO's loss, mean over the responses of a batch.

    The reference is the policy as it is at the start; its log-probabilities are computed once. The
    KL of a batch is that of the policy's responses to other prompts (``mismatched_examples``). Logs
    ``policy/loss``, ``policy/baseline`` (beta * KL, nats), ``policy/desirable_reward``,
    ``policy/undesirable_reward`` and, where a batch has both labels, ``policy/accuracy`` (share of
    a desirable and an undesirable response whose rewards are in order) and ``policy/margin`` every
    step, with what ``fit_dpo`` logs besides, and ``policy/heldout_*`` as there.

    Raises:
        DivergedError: loss or gradient is not finite; names the step.
        CheckpointError: the checkpoints belong to another run.
        DataError: there is nothing to train or to evaluate on, one label alone, or one prompt.
    """
    require_pairs("policy", train=train, heldout=heldout)
    warn_of_imbalance(train, settings)
    policy = prepare_training(policy, settings.compute, seed=run.seed)
    plan = plan_batches(
        np.arange(len(train)),
        batch_size=settings.batch_size,
        num_epochs=settings.num_epochs,
        seed=run.seed,
    )
    fingerprint = run_fingerprint(settings, [policy], _rows(train, heldout), seed=run.seed)
    return fit_objective(
        KtoObjective(policy, settings),
        policy,
        PreferenceData(train, heldout, mismatched_examples(train), mismatched_examples(heldout)),
        plan,
        fingerprint,
        run=run,
    )


@dataclass(frozen=True)
class LabelMeasures:
    """What the policy makes of a set of labelled responses."""

    rewards: Tensor
    """[N] implicit rewards."""
    losses: Tensor
    """[N]."""
    desirable: Tensor
    """[N] bool."""
    baseline: float
    """beta * KL, nats."""

    def summary(self, stage: str, prefix: str = "") -> dict[str, float]:
        """Return the metrics of ``fit_kto``; what needs a label that is not there is left out."""
        rewards = self.rewards.double()
        good, bad = rewards[self.desirable], rewards[~self.desirable]
        found = {"loss": float(self.losses.double().mean()), "baseline": self.baseline}
        found |= {"desirable_reward": float(good.mean())} if len(good) else {}
        found |= {"undesirable_reward": float(bad.mean())} if len(bad) else {}
        if len(good) and len(bad):
            found |= {"accuracy": _in_order(good, bad), "margin": float(good.mean() - bad.mean())}
        return {f"{stage}/{prefix}{name}": value for name, value in found.items()}


def _in_order(good: Tensor, bad: Tensor) -> float:
    """Share of pairs of one of each whose good one is higher; a draw counts half."""
    ordered = bad.sort().values
    below = torch.searchsorted(ordered, good) + torch.searchsorted(ordered, good, right=True)
    return float(below.double().mean()) / (2 * len(bad))


class KtoObjective:
    """KTO's loss of one policy under one setting."""

    name = "kto"

    def __init__(self, policy: nn.Module, settings: DpoConfig) -> None:
        self.policy: nn.Module = policy
        self.settings, self.budget = settings, settings.micro_batch_tokens

    def reference_logprobs(
        self,
        reference: nn.Module,
        examples: Sequence[TokenizedUnpaired],
        others: Sequence[TokenizedUnpaired],
    ) -> Tensor:
        """Log-probabilities [N, 2] of responses: an example's own, and that of its other one."""
        parts = [
            example_logprobs(reference, rows, budget=self.budget) for rows in (examples, others)
        ]
        return torch.stack(parts, dim=1)

    def accumulate(
        self,
        examples: Sequence[TokenizedUnpaired],
        ref_logprobs: Tensor,
        others: Sequence[TokenizedUnpaired],
    ) -> tuple[LabelMeasures, int]:
        """Add the gradient of the batch's mean loss.

        Args:
            examples: the N responses of the batch.
            ref_logprobs: [N, 2] as ``reference_logprobs`` gave them.
            others: the N of ``mismatched_examples``.

        Returns:
            The measures of the batch, and the number of tokens computed.
        """
        baseline = self.baseline(others, ref_logprobs)
        parts, num_tokens, start = [], 0, 0
        own_ref = processes.share(ref_logprobs[:, 0])
        for micro, rows in _runs(self.policy, processes.share(examples), budget=self.budget):
            rewards, losses = self._apply(micro, rows, own_ref[start : start + len(rows)], baseline)
            (losses.sum() / len(examples)).backward()
            parts.append((rewards.detach(), losses.detach()))
            num_tokens, start = num_tokens + micro.num_tokens, start + len(rows)
        measures = _joined(parts, examples, baseline)
        return measures, int(*processes.total(num_tokens))

    @torch.no_grad()
    def measure(
        self,
        examples: Sequence[TokenizedUnpaired],
        ref_logprobs: Tensor,
        others: Sequence[TokenizedUnpaired],
    ) -> LabelMeasures:
        """Measure responses without touching the policy."""
        baseline, parts, start = self.baseline(others, ref_logprobs), [], 0
        own_ref = processes.share(ref_logprobs[:, 0])
        for micro, rows in _runs(self.policy, processes.share(examples), budget=self.budget):
            parts.append(self._apply(micro, rows, own_ref[start : start + len(rows)], baseline))
            start += len(rows)
        return _joined(parts, examples, baseline)

    def baseline(self, others: Sequence[TokenizedUnpaired], ref_logprobs: Tensor) -> Tensor:
        """Estimate beta * KL from the reference, [], by the mean log-ratio of ``others``.

        It is 0 at least (Ethayarajh 2024, section 3.3).
        """
        logprobs = example_logprobs(self.policy, others, budget=self.budget)
        ratios = logprobs - ref_logprobs[:, 1]
        return self.settings.beta * ratios.double().mean().clamp(min=0.0).float()

    def _apply(
        self,
        micro: TokenBatch,
        rows: Sequence[TokenizedUnpaired],
        ref_logprobs: Tensor,
        baseline: Tensor,
    ) -> tuple[Tensor, Tensor]:
        logprobs = _sequence_logprobs(self.policy, micro, rows)
        device = logprobs.device
        rewards = implicit_rewards(logprobs, ref_logprobs.to(device), beta=self.settings.beta)
        losses = unpaired_kto_loss(
            rewards,
            torch.tensor([row.desirable for row in rows], dtype=torch.bool, device=device),
            baseline.to(device),
            desirable_weight=self.settings.desirable_weight,
            undesirable_weight=self.settings.undesirable_weight,
        )
        return rewards, losses


def mismatched_examples(examples: Sequence[TokenizedUnpaired]) -> Rows[TokenizedUnpaired]:
    """Give each prompt responses to another one: the examples of the prompt before it, in order.

    The first prompt takes those of the last. Cut to the longest sequence there is, so that the
    models have room for all.

    Raises:
        DataError: all prompts are the same.
    """
    longest = max(example.num_tokens for example in examples)
    givers = places_of_other_prompts(example.prompt_ids for example in examples)

    def shifted(place: int) -> TokenizedUnpaired:
        example, other = examples[place], examples[int(givers[place])]
        room = longest - len(example.prompt_ids)
        return replace(example, response_ids=other.response_ids[:room])

    return Rows(shifted, range(len(examples)))


def examples_of_pairs(pairs: Iterable[TokenizedPair]) -> Iterator[TokenizedUnpaired]:
    """Take pairs apart: each is a desirable response and an undesirable one."""
    for pair in pairs:
        yield TokenizedUnpaired(pair.pair_id, pair.prompt_ids, pair.chosen_ids, True)
        yield TokenizedUnpaired(pair.pair_id, pair.prompt_ids, pair.rejected_ids, False)


def warn_of_imbalance(train: Sequence[TokenizedUnpaired], settings: DpoConfig) -> None:
    """Log where the weights leave one label to outweigh the other, and what would balance them.

    Raises:
        DataError: all labels are the same.
    """
    good = sum(example.desirable for example in train)
    bad = len(train) - good
    if not good or not bad:
        only = "desirable" if good else "undesirable"
        raise DataError(
            f"policy: all {len(train)} labelled responses to train on are {only}; loss kto needs"
            " both labels"
        )
    ratio = settings.desirable_weight * good / (settings.undesirable_weight * bad)
    if 1 <= ratio <= MOST_DESIRABLE or math.isclose(ratio, 1) or math.isclose(ratio, 4 / 3):
        return
    low, high = (settings.undesirable_weight * weight for weight in balancing_weights(good, bad))
    logger.warning(
        "kto_weights: %d desirable and %d undesirable responses weigh %.2f to 1, where 1 to 1.33 is"
        " advised; take policy.desirable_weight from %.3g to %.3g",
        good,
        bad,
        ratio,
        low,
        high,
    )


@torch.no_grad()
def example_logprobs(
    model: nn.Module, examples: Sequence[TokenizedUnpaired], *, budget: int
) -> Tensor:
    """Log-probabilities of whole responses: [N] float32 on the CPU, in nats."""
    own = [
        _sequence_logprobs(model, micro, rows).cpu()
        for micro, rows in _runs(model, processes.share(examples), budget=budget)
    ]
    return processes.gather_rows(torch.cat(own) if own else torch.empty(0), len(examples))


def _sequence_logprobs(
    model: nn.Module, micro: TokenBatch, rows: Sequence[TokenizedUnpaired]
) -> Tensor:
    """[N] of the responses of ``rows``; of none, where others still pass, there is no response."""
    return micro.sum_by_sequence(token_logprobs(model, micro))[: len(rows)]


def _runs(
    model: nn.Module, examples: Sequence[TokenizedUnpaired], *, budget: int
) -> Iterator[tuple[TokenBatch, Sequence[TokenizedUnpaired]]]:
    """Yield micro-batches on the model's device, each with the examples it came from."""
    device = device_of(model)
    for run in in_step(model, split_by_tokens(examples, lambda row: row.num_tokens, budget=budget)):
        rows = list(run)
        batch = pack_responses([row.prompt_ids for row in rows], [row.response_ids for row in rows])
        yield batch.to(device), rows


def _joined(
    parts: Sequence[tuple[Tensor, Tensor]],
    examples: Sequence[TokenizedUnpaired],
    baseline: Tensor,
) -> LabelMeasures:
    """Put the measures of this process's micro-batches, and of all processes, in order."""
    columns = [
        torch.cat([part[place] for part in parts]).cpu() if parts else torch.empty(0)
        for place in (0, 1)
    ]
    rewards, losses = (processes.gather_rows(column, len(examples)) for column in columns)
    labels = torch.tensor([example.desirable for example in examples])
    return LabelMeasures(rewards, losses, labels, float(baseline))


def _rows(*parts: Sequence[TokenizedUnpaired]) -> Iterator[bytes]:
    """Bytes of all examples in order and where each part ends, to identify the data of a run."""
    yield from (str(len(part)).encode() for part in parts)
    for example in chain.from_iterable(parts):
        yield example.prompt_ids.tobytes()
        yield example.response_ids.tobytes()
        yield str(example.desirable).encode()
