"""What every training loop does the same way: one optimiser step, its batches."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core import processes
from rlhf_core.config import OptimizerConfig
from rlhf_core.errors import DivergedError
from rlhf_core.functional.schedule import learning_rate_factor
from rlhf_core.models import finish_training
from rlhf_core.models.sharding import Shard, gather_layers, is_divided, own_part, shard_layers
from rlhf_core.ports import Observer, Tracker
from rlhf_core.tokenization import evenly
from rlhf_core.trainers.checkpoint import Checkpoint, CheckpointStore, KeptWeights
from rlhf_core.trainers.state import (
    Tensors,
    load_model_tensors,
    load_optimizer_tensors,
    load_random,
    model_tensors,
    optimizer_tensors,
    random_tensors,
    random_values,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainingRun:
    """What one call of a trainer gets from outside besides model, data and settings."""

    seed: int
    tracker: Tracker
    checkpoints: CheckpointStore
    observer: Observer | None = None
    """Who follows the training while it runs."""
    shard: Shard = "none"
    """What of a model several processes divide among them."""
    role: str = ""
    """What the model is trained for, where one trainer serves several roles."""
    kept: KeptWeights | None = None
    """Where weights stay that one is chosen from afterwards; None: the last ones are taken."""

    def keep_weights(
        self, step: int, learned: "Optimization", steps: Sequence[int], fingerprint: str
    ) -> None:
        """Keep the model's weights as ``KeptWeights.keep`` says, where any are to be kept."""
        if self.kept is not None:
            self.kept.keep(
                step, learned.model, steps=steps, taken=learned.step, fingerprint=fingerprint
            )


@dataclass(frozen=True)
class FitSummary:
    """What a trainer did."""

    num_steps: int
    """Optimiser steps, those before a resume included."""
    metrics: dict[str, float]
    """Final held-out measurements as ``<stage>/<quantity>``, their values before training as
    ``<stage>/<quantity>_at_start``."""


class Optimization:
    """AdamW with clipping and a schedule over the trainable weights of one model.

    With ``shard`` the model's layers are divided among the processes until ``finish``.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerConfig,
        *,
        total_steps: int,
        shard: Shard = "none",
    ) -> None:
        shard_layers(model, shard)
        self.model, self.settings, self.total_steps = model, settings, total_steps
        self.step = 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.divided = [p for p in self.parameters if is_divided(p)]
        self.whole = [p for p in self.parameters if not is_divided(p)]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
            fused=not self.divided,
            foreach=False if self.divided else None,  # neither takes weights of both kinds
        )

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        return self.settings.learning_rate * learning_rate_factor(
            self.step,
            total_steps=self.total_steps,
            warmup_steps=round(self.settings.warmup_fraction * self.total_steps),
            schedule=self.settings.schedule,
        )

    def apply(self, loss: float) -> dict[str, float]:
        """Add up the gradients of all processes, clip them, move the weights, clear the gradients.

        Args:
            loss: of the whole batch, only to be checked.

        Returns:
            ``learning_rate`` used and ``grad_norm`` before clipping.

        Raises:
            DivergedError: loss or gradient is not finite; the weights are untouched.
        """
        processes.add_gradients(self.whole)
        norm, limit = self._total_norm(), self.settings.max_grad_norm
        grad_norm, learning_rate = float(norm), self.learning_rate
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not torch.isfinite(torch.tensor(value)):
                raise DivergedError(
                    f"{name} is {value} at step {self.step}; lower the learning rate"
                )
        if grad_norm > limit:
            for kind in (self.whole, self.divided):
                nn.utils.clip_grads_with_norm_(kind, limit, norm, foreach=kind is self.whole)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"learning_rate": learning_rate, "grad_norm": grad_norm}

    def finish(self) -> PreTrainedModel:
        """Let go of the moments, put divided layers together, and end the model's training."""
        del self.optimizer, self.parameters, self.divided, self.whole
        gather_layers(self.model)
        return finish_training(self.model)

    def _total_norm(self) -> Tensor:
        """Norm of all gradients; of divided ones every process knows its own part."""
        whole, own = (
            nn.utils.get_total_norm(
                [own_part(p.grad) for p in kind if p.grad is not None], foreach=True
            )
            for kind in (self.whole, self.divided)
        )
        if not self.divided:
            return whole
        (squares,) = processes.total(float(own.double() ** 2))
        return (whole.double() ** 2 + squares).sqrt().float()

    def tensors(self) -> Tensors:
        """Weights, moments and generator states, for a checkpoint."""
        return {
            **model_tensors(self.model),
            **optimizer_tensors(self.optimizer),
            **random_tensors(),
        }

    def values(self) -> dict[str, Any]:
        """The rest of the state, for a checkpoint."""
        return random_values()

    def load(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint made of ``tensors`` and ``values``."""
        load_model_tensors(self.model, checkpoint.tensors)
        load_optimizer_tensors(self.optimizer, checkpoint.tensors)
        load_random(checkpoint.tensors, checkpoint.values)
        self.step = checkpoint.step
        logger.info("resume=step step=%d of=%d", self.step, self.total_steps)


def checkpoint_steps(total: int, every: int) -> list[int]:
    """Return the steps after which there is a checkpoint: every so many, and the last."""
    return [*range(every, total, every), total]


def at_start(metrics: Mapping[str, float]) -> dict[str, float]:
    """Name measurements as those from before training."""
    return {f"{name}_at_start": value for name, value in metrics.items()}


def shuffled(num_items: int, *, seed: int, epoch: int) -> list[int]:
    """Return the order of one epoch; it depends on its arguments alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(num_items, generator=generator).tolist()
    return order


def plan_batches(
    groups: NDArray[np.int64], *, batch_size: int, num_epochs: int, seed: int
) -> list[list[int]]:
    """Lay out every batch of a run in advance: indices of items, epoch after epoch.

    Args:
        groups: [N] the number of each item's group, from 0 in the order of their first items. Those
            of a group (the pairs of one prompt) stay in one batch unless they are more than a
            batch; then the group is cut into batches.
        batch_size: items in a batch; a batch may end early so as not to cut a group. The last
            batch of an epoch holds what is left.
        num_epochs: passes over all groups, each in an order of its own.
        seed: of the orders.
    """
    # Items of a group side by side, cut into pieces of a batch at most; batches are filled with
    # whole pieces in a shuffled order.
    items = np.argsort(groups, kind="stable").tolist()
    sizes = np.bincount(groups)
    place_in_group = np.arange(len(items)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    starts = np.flatnonzero(place_in_group % batch_size == 0).tolist()
    ends = [*starts[1:], len(items)]
    batches: list[list[int]] = []
    for epoch in range(num_epochs):
        batch: list[int] = []
        for position in shuffled(len(starts), seed=seed, epoch=epoch):
            piece = items[starts[position] : ends[position]]
            if batch and len(batch) + len(piece) > batch_size:
                batches.append(batch)
                batch = []
            batch = batch + piece
        batches.append(batch)
    return batches


def split_by_tokens(
    items: Sequence[Item], num_tokens: Callable[[Item], int], *, budget: int
) -> list[Sequence[Item]]:
    """Cut ``items`` into even runs within ``budget``; a longer item is a run of its own."""
    return evenly(partial(_filled, items, num_tokens), budget=budget)


def _filled(
    items: Sequence[Item], num_tokens: Callable[[Item], int], budget: int
) -> list[Sequence[Item]]:
    starts: list[int] = []
    used = 0
    for place, item in enumerate(items):
        size = num_tokens(item)
        if not starts or used + size > budget:
            starts.append(place)
            used = 0
        used += size
    return cut_at(items, starts)


def cut_at(items: Sequence[Item], starts: Sequence[int]) -> list[Sequence[Item]]:
    """Cut ``items`` into slices that begin at ``starts``."""
    return [items[start:end] for start, end in pairwise([*starts, len(items)])]


def draw(items: Sequence[Item], *, drawn: int, count: int, seed: int) -> list[Item]:
    """Next ``count`` items: each once in a shuffled order, then each again in another.

    Args:
        items: what to draw from, at least one.
        drawn: how many were drawn before; the only state there is.
        count: how many to draw.
        seed: of the orders.
    """
    orders = {
        epoch: shuffled(len(items), seed=seed, epoch=epoch)
        for epoch in range(drawn // len(items), (drawn + count - 1) // len(items) + 1)
    }
    places = [
        orders[number // len(items)][number % len(items)] for number in range(drawn, drawn + count)
    ]
    # One object for an item that is drawn twice: whoever packs them shares what is the same one.
    found = {place: items[place] for place in places}
    return [found[place] for place in places]


def mean_metrics(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average each metric over the steps."""
    return {name: math.fsum(step[name] for step in steps) / len(steps) for name in steps[0]}
