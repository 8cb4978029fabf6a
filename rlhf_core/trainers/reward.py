"""Reward model: a score per response, trained on which of two responses people preferred."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.config import RewardConfig
from rlhf_core.functional.bradley_terry import soft_bradley_terry_loss
from rlhf_core.models import (
    device_of,
    prepare_training,
    sequence_scores,
    set_reward_shift,
)
from rlhf_core.tokenization import PreferenceBatch, TokenizedExample, TokenizedPair, pack_examples
from rlhf_core.trainers.loop import (
    FitSummary,
    Optimization,
    TrainingRun,
    at_start,
    split_by_tokens,
)
from rlhf_core.trainers.preference import (
    PairMeasures,
    join_measures,
    pack_runs,
    pair_rows,
    plan_pair_batches,
    require_pairs,
)
from rlhf_core.trainers.progress import Progress
from rlhf_core.trainers.state import run_fingerprint


def fit_reward_model(
    model: nn.Module,
    train: Sequence[TokenizedPair],
    heldout: Sequence[TokenizedPair],
    reference: Sequence[TokenizedExample],
    *,
    settings: RewardConfig,
    run: TrainingRun,
) -> FitSummary:
    """Train ``model`` in place with the Bradley-Terry loss, mean over the pairs of a batch.

    Logs ``reward/loss`` (nats per pair), ``reward/accuracy``, ``reward/margin``,
    ``reward/learning_rate``, ``reward/grad_norm``, ``reward/tokens_per_second`` every step, and
    ``reward/heldout_*`` at the start, every ``evaluate_every`` steps, and at the end, then also
    by length of the responses; of a judge, ``judge/loss`` and so on.

    Args:
        model: from ``scalar_from_causal``.
        train: pairs to learn from.
        heldout: pairs to measure on.
        reference: demonstrations; with ``center_on_reference`` their mean score becomes 0.
        settings: of the training.
        run: seed, tracker, checkpoints; its role is that of the metrics' names.

    Raises:
        DivergedError: loss or gradient is not finite; names the step.
        CheckpointError: the checkpoints belong to another run.
        DataError: there is nothing to train, to evaluate or to centre on.
    """
    role, budget, labels = run.role or "reward", settings.micro_batch_tokens, Labels.of(settings)
    require_pairs(role, train=train, heldout=heldout)
    if settings.center_on_reference:
        require_pairs(role, reference=reference)
    model = prepare_training(model, settings.compute, seed=run.seed)
    plan = plan_pair_batches(
        train, batch_size=settings.batch_size, num_epochs=settings.num_epochs, seed=run.seed
    )
    fingerprint = run_fingerprint(settings, [model], pair_rows(train, heldout), seed=run.seed)
    optimization = Optimization(model, settings.optimizer, total_steps=len(plan), shard=run.shard)
    if (checkpoint := run.checkpoints.latest(fingerprint=fingerprint)) is not None:
        optimization.load(checkpoint)
        first: dict[str, float] = checkpoint.values["first"]
    else:
        measures = measure_pairs(model, heldout, budget=budget, labels=labels)
        first = measures.summary(role, "heldout_")
        run.tracker.log_metrics(first, step=0)
    progress = Progress(role, run.observer, total=len(plan), done=optimization.step)
    while optimization.step < len(plan):
        started = time.perf_counter()
        batch = [train[index] for index in plan[optimization.step]]
        measures, num_tokens = accumulate_pairs(model, batch, budget=budget, labels=labels)
        metrics = measures.summary(role)
        applied = optimization.apply(metrics[f"{role}/loss"])
        metrics |= {f"{role}/{name}": value for name, value in applied.items()}
        metrics[f"{role}/tokens_per_second"] = num_tokens / (time.perf_counter() - started)
        step = optimization.step
        if settings.evaluate_every and step % settings.evaluate_every == 0 and step < len(plan):
            measures = measure_pairs(model, heldout, budget=budget, labels=labels)
            metrics |= measures.summary(role, "heldout_")
        run.tracker.log_metrics(metrics, step=step)
        progress.advance(metrics)
        if step % settings.checkpoint_every == 0 or step == len(plan):
            run.checkpoints.save(
                step,
                optimization.tensors(),
                {**optimization.values(), "first": first},
                fingerprint=fingerprint,
            )
    progress.close()
    model = optimization.finish()
    measures = measure_pairs(model, heldout, budget=budget, labels=labels)
    final = measures.summary(role, "heldout_") | measures.accuracy_by_length(heldout, role)
    if settings.center_on_reference:
        final[f"{role}/shift"] = center_on_reference(model, reference, budget=budget)
    run.tracker.log_metrics(final, step=len(plan))
    return FitSummary(num_steps=len(plan), metrics=final | at_start(first))


@dataclass(frozen=True)
class Labels:
    """What a pair's label is taken for."""

    soft: bool = False
    """The pair's own probability instead of certainty."""
    smoothing: float = 0.0
    """Share of labels taken to be wrong."""

    @classmethod
    def of(cls, settings: RewardConfig) -> "Labels":
        """As the settings say."""
        return cls(settings.use_soft_labels, settings.label_smoothing)

    def probability(self, micro: PreferenceBatch) -> Tensor:
        """[P] probability that ``chosen`` is better."""
        sure = micro.probability if self.soft else torch.ones_like(micro.probability)
        return sure + self.smoothing * (1.0 - 2.0 * sure)


HARD = Labels()


def accumulate_pairs(
    model: nn.Module, pairs: Sequence[TokenizedPair], *, budget: int, labels: Labels = HARD
) -> tuple[PairMeasures, int]:
    """Add the gradient of the batch's mean loss.

    Returns:
        The measures of the batch, and the number of tokens computed.
    """
    parts, num_tokens = [], 0
    for micro, _ in pack_runs(model, processes.share(pairs), budget=budget):
        margins, losses = _margins_and_losses(model, micro, labels)
        (losses.sum() / len(pairs)).backward()
        parts.append(PairMeasures(margins.detach(), losses.detach()))
        num_tokens += micro.tokens.num_tokens
    return join_measures(parts, len(pairs)), int(*processes.total(num_tokens))


@torch.no_grad()
def measure_pairs(
    model: nn.Module, pairs: Sequence[TokenizedPair], *, budget: int, labels: Labels = HARD
) -> PairMeasures:
    """Score pairs without touching the model; results are in the order of ``pairs``."""
    return join_measures(
        [
            PairMeasures(*_margins_and_losses(model, micro, labels))
            for micro, _ in pack_runs(model, processes.share(pairs), budget=budget)
        ],
        len(pairs),
    )


@torch.no_grad()
def center_on_reference(
    model: nn.Module, reference: Sequence[TokenizedExample], *, budget: int
) -> float:
    """Shift the scores so that ``reference`` scores 0 on average; return the shift.

    Stiennon et al. (2020), arXiv:2009.01325, section 3.4, normalise the same way.
    """
    require_pairs("reward", reference=reference)
    set_reward_shift(model, 0.0)
    device = device_of(model)
    ordered = processes.share(sorted(reference, key=lambda example: example.num_tokens))
    own = sum(
        sequence_scores(model, pack_examples(part).to(device)).double().sum().item()
        for part in split_by_tokens(ordered, lambda example: example.num_tokens, budget=budget)
    )
    (total,) = processes.total(own)
    set_reward_shift(model, total / len(reference))
    return total / len(reference)


def _margins_and_losses(
    model: nn.Module, micro: PreferenceBatch, labels: Labels
) -> tuple[Tensor, Tensor]:
    scores = sequence_scores(model, micro.tokens)
    chosen, rejected = scores[micro.chosen], scores[micro.rejected]
    losses = soft_bradley_terry_loss(chosen, rejected, labels.probability(micro), micro.margin)
    return chosen - rejected, losses
