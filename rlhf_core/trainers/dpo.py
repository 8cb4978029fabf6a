"""DPO's family: a policy straight from the pairs, with no reward model and no sampling."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.config import DpoConfig
from rlhf_core.functional.dpo import (
    dpo_loss,
    implicit_rewards,
    ipo_loss,
    kto_loss,
    orpo_loss,
    per_token,
    robust_dpo_loss,
    simpo_loss,
)
from rlhf_core.models import prepare_training, token_logprobs
from rlhf_core.tokenization import PreferenceBatch, Rows, TokenizedPair
from rlhf_core.trainers.loop import FitSummary, TrainingRun
from rlhf_core.trainers.preference import (
    PairMeasures,
    PreferenceData,
    fit_objective,
    join_measures,
    pack_runs,
    pair_rows,
    places_of_other_prompts,
    plan_pair_batches,
    require_pairs,
)
from rlhf_core.trainers.state import run_fingerprint


def fit_dpo(
    policy: nn.Module,
    reference: nn.Module | None,
    train: Sequence[TokenizedPair],
    heldout: Sequence[TokenizedPair],
    *,
    settings: DpoConfig,
    run: TrainingRun,
) -> FitSummary:
    """Train ``policy`` in place with ``settings.loss``, mean over the pairs of a batch.

    The reference never changes, so its log-probabilities are computed once, before training; None
    takes the policy as it is then, and no second model is needed. SimPO and ORPO ask none. Logs
    ``policy/loss`` (nats per pair), ``policy/accuracy`` and ``policy/margin`` of the implicit
    rewards, ``policy/learning_rate``, ``policy/grad_norm``, ``policy/tokens_per_second`` every
    step, and ``policy/heldout_*`` at the start, every ``evaluate_every`` steps, and at the end.

    Raises:
        DivergedError: loss or gradient is not finite; names the step.
        CheckpointError: the checkpoints belong to another run.
        DataError: there is nothing to train or to evaluate on, or the loss has a baseline and all
            prompts are the same.
    """
    require_pairs("policy", train=train, heldout=heldout)
    policy = prepare_training(policy, settings.compute, seed=run.seed)
    reference = policy if reference is None else reference
    plan = plan_pair_batches(
        train, batch_size=settings.batch_size, num_epochs=settings.num_epochs, seed=run.seed
    )
    fingerprint = run_fingerprint(
        settings, [policy, reference], pair_rows(train, heldout), seed=run.seed
    )
    others = (mismatched(p) if settings.needs_baseline else p for p in (train, heldout))
    return fit_objective(
        DpoObjective(policy, settings),
        reference,
        PreferenceData(train, heldout, *others),
        plan,
        fingerprint,
        run=run,
    )


class DpoObjective:
    """The loss of one policy under one setting."""

    name = "dpo"

    def __init__(self, policy: nn.Module, settings: DpoConfig) -> None:
        self.policy: nn.Module = policy
        self.settings, self.budget = settings, settings.micro_batch_tokens

    def reference_logprobs(
        self,
        reference: nn.Module,
        pairs: Sequence[TokenizedPair],
        others: Sequence[TokenizedPair] = (),
    ) -> Tensor:
        """Log-probabilities [P, 2] that the loss compares with; 0 where it has no reference.

        With a baseline [P, 4]: those of the ``mismatched`` pairs stand behind.
        """
        if not self.settings.needs_reference:
            return torch.zeros(len(pairs), 2)
        own = pair_logprobs(reference, pairs, budget=self.budget)
        if not self.settings.needs_baseline:
            return own
        return torch.cat([own, pair_logprobs(reference, others, budget=self.budget)], dim=1)

    def accumulate(
        self,
        pairs: Sequence[TokenizedPair],
        ref_logprobs: Tensor,
        others: Sequence[TokenizedPair] = (),
    ) -> tuple[PairMeasures, int]:
        """Add the gradient of the batch's mean loss.

        Args:
            pairs: the P pairs of the batch.
            ref_logprobs: as ``reference_logprobs`` gave them.
            others: the P ``mismatched`` pairs, read where the loss has a baseline.

        Returns:
            The measures of the batch, and the number of tokens computed.
        """
        parts, num_tokens, start = [], 0, 0
        own_ref, baseline = (
            processes.share(ref_logprobs[:, :2]),
            self.baseline(others, ref_logprobs),
        )
        for micro, run in pack_runs(self.policy, processes.share(pairs), budget=self.budget):
            margins, losses = self._apply(micro, own_ref[start : start + len(run)], baseline)
            (losses.sum() / len(pairs)).backward()
            parts.append(PairMeasures(margins.detach(), losses.detach()))
            num_tokens, start = num_tokens + micro.tokens.num_tokens, start + len(run)
        return join_measures(parts, len(pairs)), int(*processes.total(num_tokens))

    @torch.no_grad()
    def measure(
        self,
        pairs: Sequence[TokenizedPair],
        ref_logprobs: Tensor,
        others: Sequence[TokenizedPair] = (),
    ) -> PairMeasures:
        """Measure pairs without touching the policy."""
        parts, start = [], 0
        baseline = self.baseline(others, ref_logprobs)
        own_ref = processes.share(ref_logprobs[:, :2])
        for micro, run in pack_runs(self.policy, processes.share(pairs), budget=self.budget):
            own = own_ref[start : start + len(run)]
            parts.append(PairMeasures(*self._apply(micro, own, baseline)))
            start += len(run)
        return join_measures(parts, len(pairs))

    def baseline(self, others: Sequence[TokenizedPair], ref_logprobs: Tensor) -> Tensor:
        """Estimate beta * KL from the reference, [], from responses to other prompts.

        Their mean log-ratio, 0 at least (Ethayarajh 2024, section 3.3); 0 where the loss has none.
        """
        if not self.settings.needs_baseline:
            return torch.zeros(())
        ratios = pair_logprobs(self.policy, others, budget=self.budget) - ref_logprobs[:, 2:]
        return self.settings.beta * ratios.double().mean().clamp(min=0.0).float()

    def _apply(
        self, micro: PreferenceBatch, ref_logprobs: Tensor, baseline: Tensor
    ) -> tuple[Tensor, Tensor]:
        settings = self.settings
        logprobs = _chosen_and_rejected(self.policy, micro)
        ref_logprobs = ref_logprobs.to(logprobs.device)
        if settings.is_per_token:
            of_sequence = micro.tokens.response_lengths
            lengths = torch.stack([of_sequence[micro.chosen], of_sequence[micro.rejected]], dim=1)
            logprobs, ref_logprobs = (per_token(row, lengths) for row in (logprobs, ref_logprobs))
        rewards = implicit_rewards(logprobs, ref_logprobs, beta=settings.beta)
        if settings.needs_baseline:
            losses = kto_loss(
                rewards[:, 0],
                rewards[:, 1],
                baseline.to(rewards.device),
                desirable_weight=settings.desirable_weight,
                undesirable_weight=settings.undesirable_weight,
            )
        else:
            losses = pair_losses(settings, micro.probability, logprobs - ref_logprobs, rewards)
        return rewards[:, 0] - rewards[:, 1], losses


def pair_losses(
    settings: DpoConfig, probability: Tensor, ratios: Tensor, rewards: Tensor
) -> Tensor:
    """Losses [P] of pairs by ``settings.loss``.

    Args:
        settings: name the loss and what it reads.
        probability: [P] soft labels, read with ``use_soft_labels``.
        ratios: [P, 2] log-probabilities less those of the reference, chosen first, in nats.
        rewards: [P, 2] the same times beta.
    """
    label = probability if settings.use_soft_labels else torch.ones_like(probability)
    label = label + settings.label_smoothing * (1.0 - 2.0 * label)
    return PAIR_LOSSES[settings.loss](settings, label, ratios, rewards)


def _simpo(settings: DpoConfig, label: Tensor, ratios: Tensor, rewards: Tensor) -> Tensor:
    return simpo_loss(rewards[:, 0], rewards[:, 1], label, target_margin=settings.target_margin)


PAIR_LOSSES: dict[str, Callable[[DpoConfig, Tensor, Tensor, Tensor], Tensor]] = {
    "dpo": lambda settings, label, ratios, rewards: dpo_loss(rewards[:, 0], rewards[:, 1], label),
    "robust": lambda settings, label, ratios, rewards: robust_dpo_loss(
        rewards[:, 0], rewards[:, 1], noise=settings.label_smoothing
    ),
    "ipo": lambda settings, label, ratios, rewards: ipo_loss(
        ratios[:, 0], ratios[:, 1], label, beta=settings.beta
    ),
    "simpo": _simpo,
    "orpo": lambda settings, label, ratios, rewards: orpo_loss(
        ratios[:, 0], ratios[:, 1], weight=settings.beta
    ),
}
"""By ``loss``; KTO's, which has a baseline besides, is not among them."""


def mismatched(pairs: Sequence[TokenizedPair]) -> Rows[TokenizedPair]:
    """Give each prompt the responses to another one, as ``places_of_other_prompts`` finds them.

    Cut to the longest sequence there is, so that the models have room for all.

    Raises:
        DataError: all prompts are the same.
    """
    longest = max(pair.num_tokens for pair in pairs)
    givers = places_of_other_prompts(pair.prompt_ids for pair in pairs)

    def shifted(place: int) -> TokenizedPair:
        pair, other = pairs[place], pairs[int(givers[place])]
        room = longest - len(pair.prompt_ids)
        responses = other.chosen_ids[:room], other.rejected_ids[:room]
        return TokenizedPair(pair.pair_id, pair.prompt_ids, *responses)

    return Rows(shifted, range(len(pairs)))


@torch.no_grad()
def pair_logprobs(model: nn.Module, pairs: Sequence[TokenizedPair], *, budget: int) -> Tensor:
    """Log-probabilities of whole responses, chosen first: [P, 2] float32 on the CPU, in nats."""
    own = [
        _chosen_and_rejected(model, micro).cpu()
        for micro, _ in pack_runs(model, processes.share(pairs), budget=budget)
    ]
    return processes.gather_rows(torch.cat(own) if own else torch.empty(0, 2), len(pairs))


def _chosen_and_rejected(model: nn.Module, micro: PreferenceBatch) -> Tensor:
    by_sequence = micro.tokens.sum_by_sequence(token_logprobs(model, micro.tokens))
    return torch.stack([by_sequence[micro.chosen], by_sequence[micro.rejected]], dim=1)
