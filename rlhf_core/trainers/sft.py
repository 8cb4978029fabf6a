"""Supervised fine-tuning: maximise the likelihood of demonstrated responses."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import nn

from rlhf_core import processes
from rlhf_core.config import SftConfig
from rlhf_core.errors import DataError, DivergedError
from rlhf_core.models import device_of, nll_sum, prepare_training
from rlhf_core.models.compute import file_dtype
from rlhf_core.models.sharding import in_step
from rlhf_core.tokenization import Rows, TokenBatch, TokenizedExample, pack_examples
from rlhf_core.trainers.checkpoint import Checkpoint
from rlhf_core.trainers.loop import (
    FitSummary,
    Optimization,
    TrainingRun,
    at_start,
    plan_batches,
    split_by_tokens,
)
from rlhf_core.trainers.progress import Progress
from rlhf_core.trainers.state import Tensors, load_model_tensors, model_tensors, run_fingerprint


def fit_sft(
    model: nn.Module,
    train: Sequence[TokenizedExample],
    heldout: Sequence[TokenizedExample],
    *,
    settings: SftConfig,
    run: TrainingRun,
) -> FitSummary:
    """Fine-tune ``model`` in place.

        loss = -sum over the counted tokens of the batch of log pi(token | before) / their number

    The denominator is the whole batch's, so micro-batches do not change the gradient. Logs
    ``sft/loss`` (nats per token), ``sft/learning_rate``, ``sft/grad_norm``,
    ``sft/tokens_per_second`` every step, and ``sft/heldout_nll`` (nats per token) at the start,
    every ``evaluate_every`` steps, and at the end.

    Raises:
        DivergedError: loss or gradient is not finite; names the step.
        CheckpointError: the checkpoints belong to another run.
        DataError: there is nothing to train or to evaluate on.
    """
    _require_examples(train=train, heldout=heldout)
    model = prepare_training(model, settings.compute, seed=run.seed)
    plan = plan_batches(
        np.arange(len(train)),
        batch_size=settings.batch_size,
        num_epochs=settings.num_epochs,
        seed=run.seed,
    )
    evaluate = partial(heldout_nll, model, heldout, budget=settings.micro_batch_tokens)
    fingerprint = run_fingerprint(settings, [model], _rows(train, heldout), seed=run.seed)
    optimization = Optimization(model, settings.optimizer, total_steps=len(plan), shard=run.shard)
    best = BestWeights(patience=settings.early_stopping_patience)
    if (checkpoint := run.checkpoints.latest(fingerprint=fingerprint)) is not None:
        optimization.load(checkpoint)
        best.load(checkpoint)
    else:
        best.offer(evaluate(), model, step=0)
        run.tracker.log_metrics({"sft/heldout_nll": best.first}, step=0)
    progress = Progress("sft", run.observer, total=len(plan), done=optimization.step)
    while optimization.step < len(plan) and not best.exhausted:
        started = time.perf_counter()
        batch = [train[index] for index in plan[optimization.step]]
        loss, num_tokens = accumulate_nll(model, batch, budget=settings.micro_batch_tokens)
        metrics = {"sft/loss": loss}
        metrics |= {f"sft/{name}": value for name, value in optimization.apply(loss).items()}
        metrics["sft/tokens_per_second"] = num_tokens / (time.perf_counter() - started)
        step = optimization.step
        if step == len(plan) or (settings.evaluate_every and step % settings.evaluate_every == 0):
            best.offer(evaluate(), model, step=step)
            metrics["sft/heldout_nll"] = best.last
        run.tracker.log_metrics(metrics, step=step)
        progress.advance(metrics)
        if step % settings.checkpoint_every == 0 or step == len(plan) or best.exhausted:
            run.checkpoints.save(
                step,
                {**optimization.tensors(), **best.tensors},
                {**optimization.values(), **best.values()},
                fingerprint=fingerprint,
            )
    progress.close()
    best.restore(model)
    final, finished = best.kept, optimization.finish()
    if file_dtype(finished) is not None:  # rounded to the precision of the files
        final = heldout_nll(finished, heldout, budget=settings.micro_batch_tokens)
        run.tracker.log_metrics({"sft/heldout_nll": final}, step=optimization.step)
    return FitSummary(
        num_steps=optimization.step,
        metrics={"sft/heldout_nll": final} | at_start({"sft/heldout_nll": best.first}),
    )


def accumulate_nll(
    model: nn.Module, batch: Sequence[TokenizedExample], *, budget: int
) -> tuple[float, int]:
    """Add the gradient of the batch's mean NLL per counted token.

    Returns:
        The mean NLL in nats, and the number of tokens computed (prompts included).
    """
    micro_batches = list(_micro_batches(model, processes.share(batch), budget))
    num_loss_tokens, num_tokens = processes.total(
        sum(micro.num_loss_tokens for micro in micro_batches),
        sum(micro.num_tokens for micro in micro_batches),
    )
    own = 0.0
    for micro in micro_batches:
        loss = nll_sum(model, micro) / num_loss_tokens
        loss.backward()
        own += loss.item()
    (total,) = processes.total(own)
    return total, int(num_tokens)


@torch.no_grad()
def heldout_nll(model: nn.Module, examples: Sequence[TokenizedExample], *, budget: int) -> float:
    """Mean negative log-likelihood per counted token over all ``examples``, in nats."""
    lengths = [example.num_tokens for example in examples]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    by_length = Rows(lambda place: examples[order[place]], range(len(order)))
    own, own_tokens = 0.0, 0
    for micro in _micro_batches(model, processes.share(by_length), budget):
        own += nll_sum(model, micro).item()
        own_tokens += micro.num_loss_tokens
    total, num_loss_tokens = processes.total(own, own_tokens)
    return total / num_loss_tokens


@dataclass
class BestWeights:
    """Watches the held-out NLL; with a patience, keeps the weights of its lowest value."""

    patience: int | None
    history: list[float] = field(default_factory=list)
    tensors: Tensors = field(default_factory=dict)

    @property
    def first(self) -> float:
        """NLL before training."""
        return self.history[0]

    @property
    def last(self) -> float:
        """NLL of the latest evaluation."""
        return self.history[-1]

    @property
    def kept(self) -> float:
        """NLL of the weights that training ends with."""
        return self.last if self.patience is None else min(self.history)

    @property
    def exhausted(self) -> bool:
        """True once ``patience`` evaluations in a row were no better than the best before them."""
        if self.patience is None:
            return False
        return len(self.history) - 1 - self.history.index(min(self.history)) >= self.patience

    def offer(self, nll: float, model: nn.Module, *, step: int) -> None:
        """Note an evaluation, and the weights if it is the best so far.

        Raises:
            DivergedError: it is not finite.
        """
        if not math.isfinite(nll):
            raise DivergedError(f"step {step}: the held-out NLL is {nll}")
        if self.patience is not None and nll < min(self.history, default=float("inf")):
            self.tensors = {
                name: tensor.clone() for name, tensor in model_tensors(model, "best").items()
            }
        self.history.append(nll)

    def restore(self, model: nn.Module) -> None:
        """Give the model the best weights, where they were kept."""
        if self.tensors:
            load_model_tensors(model, self.tensors, "best")

    def values(self) -> dict[str, list[float]]:
        """State for a checkpoint."""
        return {"heldout_nll": self.history}

    def load(self, checkpoint: Checkpoint) -> None:
        """Take the state out of a checkpoint."""
        self.history = list(checkpoint.values["heldout_nll"])
        self.tensors = {
            name: checkpoint.tensors[name]
            for name in checkpoint.tensors
            if name.startswith("best.")
        }


def _micro_batches(
    model: nn.Module, examples: Sequence[TokenizedExample], budget: int
) -> Iterator[TokenBatch]:
    device = device_of(model)
    runs = split_by_tokens(examples, lambda example: example.num_tokens, budget=budget)
    for run in in_step(model, runs):
        yield pack_examples(run).to(device)


def _rows(*parts: Sequence[TokenizedExample]) -> Iterator[bytes]:
    yield from (str(len(part)).encode() for part in parts)
    for example in chain.from_iterable(parts):
        for array in (example.prompt_ids, example.response_ids, example.prompt_mask):
            if array is not None:
                yield array.tobytes()


def _require_examples(**parts: Sequence[TokenizedExample]) -> None:
    for name, examples in parts.items():
        if not examples:
            raise DataError(f"sft: no {name} demonstrations")
