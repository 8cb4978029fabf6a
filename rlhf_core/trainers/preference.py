"""What trainings on preferences share: batches of pairs, measures, and the loop of DPO's family."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain, groupby
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.config import DpoConfig
from rlhf_core.errors import DataError
from rlhf_core.models import device_of
from rlhf_core.models.compute import file_dtype, precision
from rlhf_core.models.sharding import in_step
from rlhf_core.statistics.clusters import numbered
from rlhf_core.tokenization import (
    PreferenceBatch,
    TokenIds,
    TokenizedPair,
    TokenizedUnpaired,
    evenly,
    pack_pairs,
)
from rlhf_core.trainers.loop import (
    FitSummary,
    Optimization,
    TrainingRun,
    at_start,
    checkpoint_steps,
    cut_at,
    plan_batches,
)
from rlhf_core.trainers.progress import Progress

LENGTH_TOLERANCE = 0.1
"""Responses whose lengths differ by less than this share of the longer count as equally long."""

Row = TypeVar("Row", TokenizedPair, TokenizedUnpaired)
Read = TypeVar("Read", TokenizedPair, TokenizedUnpaired, contravariant=True)


class Measures(Protocol):
    """What a policy makes of a set of rows."""

    def summary(self, stage: str, prefix: str = "") -> dict[str, float]:
        """Metrics as ``<stage>/<prefix><quantity>``."""


class Objective(Protocol[Read]):
    """A loss of a policy on rows, compared with a reference that never changes."""

    name: str
    """As progress is reported."""
    policy: nn.Module
    settings: DpoConfig

    def reference_logprobs(
        self, reference: nn.Module, rows: Sequence[Read], others: Sequence[Read]
    ) -> Tensor:
        """Log-probabilities [N, ...] of the rows, and of the mismatched ``others``."""

    def accumulate(
        self, rows: Sequence[Read], ref_logprobs: Tensor, others: Sequence[Read]
    ) -> tuple[Measures, int]:
        """Add the gradient of the mean loss; return measures and the number of tokens computed."""

    def measure(
        self, rows: Sequence[Read], ref_logprobs: Tensor, others: Sequence[Read]
    ) -> Measures:
        """Measure rows without touching the policy."""


@dataclass(frozen=True)
class PreferenceData(Generic[Row]):
    """What DPO's family trains and is measured on."""

    train: Sequence[Row]
    heldout: Sequence[Row]
    train_others: Sequence[Row]
    """For each row of ``train`` one with its prompt and a response to another."""
    heldout_others: Sequence[Row]


def fit_objective(
    objective: Objective[Row],
    reference: nn.Module,
    data: PreferenceData[Row],
    plan: Sequence[Sequence[int]],
    fingerprint: str,
    *,
    run: TrainingRun,
) -> FitSummary:
    """Train the objective's policy in place: the loop of ``fit_dpo`` and ``fit_kto``.

    The reference's log-probabilities are computed once, before the first step, and lie in every
    checkpoint.

    Args:
        objective: the loss, and the policy made ready to train.
        reference: as the policy was at the start, or the policy itself.
        data: rows.
        plan: indices of ``data.train``, batch after batch.
        fingerprint: of the run, for its checkpoints.
        run: seed, tracker, checkpoints.
    """
    policy, settings, total = objective.policy, objective.settings, len(plan)
    optimization = Optimization(policy, settings.optimizer, total_steps=total, shard=run.shard)
    if (checkpoint := run.checkpoints.latest(fingerprint=fingerprint)) is not None:
        optimization.load(checkpoint)
        train_ref, heldout_ref = (checkpoint.tensors[name] for name in ("train_ref", "heldout_ref"))
        first: dict[str, float] = checkpoint.values["first"]
    else:
        with precision(reference, settings.compute):
            train_ref = objective.reference_logprobs(reference, data.train, data.train_others)
            heldout_ref = objective.reference_logprobs(reference, data.heldout, data.heldout_others)
        first = _heldout(objective, data, heldout_ref)
        run.tracker.log_metrics(first, step=0)
    checkpoints = checkpoint_steps(total, settings.checkpoint_every)
    progress = Progress(objective.name, run.observer, total=total, done=optimization.step)
    while optimization.step < total:
        started = time.perf_counter()
        indices = plan[optimization.step]
        rows, others = (
            [part[index] for index in indices] for part in (data.train, data.train_others)
        )
        measures, num_tokens = objective.accumulate(rows, train_ref[indices], others)
        metrics = measures.summary("policy")
        applied = optimization.apply(metrics["policy/loss"])
        metrics |= {f"policy/{name}": value for name, value in applied.items()}
        metrics["policy/tokens_per_second"] = num_tokens / (time.perf_counter() - started)
        step = optimization.step
        if settings.evaluate_every and step % settings.evaluate_every == 0 and step < total:
            metrics |= _heldout(objective, data, heldout_ref)
        run.tracker.log_metrics(metrics, step=step)
        progress.advance(metrics)
        if step in checkpoints:
            run.keep_weights(step, optimization, checkpoints, fingerprint)
            run.checkpoints.save(
                step,
                {**optimization.tensors(), "train_ref": train_ref, "heldout_ref": heldout_ref},
                {**optimization.values(), "first": first},
                fingerprint=fingerprint,
            )
    progress.close()
    # Files of half precision round the weights: what is measured at the end is what they hold.
    rounds = file_dtype(policy) is not None
    final = {} if rounds else _heldout(objective, data, heldout_ref)
    objective.policy = optimization.finish()
    final = final or _heldout(objective, data, heldout_ref)
    run.tracker.log_metrics(final, step=total)
    return FitSummary(num_steps=total, metrics=final | at_start(first))


def _heldout(
    objective: Objective[Row], data: PreferenceData[Row], ref_logprobs: Tensor
) -> dict[str, float]:
    measures = objective.measure(data.heldout, ref_logprobs, data.heldout_others)
    return measures.summary("policy", "heldout_")


def plan_pair_batches(
    pairs: Sequence[TokenizedPair], *, batch_size: int, num_epochs: int, seed: int
) -> list[list[int]]:
    """Lay out every batch in advance, the pairs of one prompt together (Ouyang 2022, sec. 3.5)."""
    prompts = numbered(blake2b(pair.prompt_ids.data, digest_size=16).digest() for pair in pairs)
    return plan_batches(prompts, batch_size=batch_size, num_epochs=num_epochs, seed=seed)


def split_pairs_by_tokens(
    pairs: Sequence[TokenizedPair], *, budget: int
) -> list[Sequence[TokenizedPair]]:
    """Cut pairs into even runs within ``budget`` tokens; what pairs share is counted once."""
    return evenly(partial(_filled, pairs), budget=budget)


def _filled(pairs: Sequence[TokenizedPair], budget: int) -> list[Sequence[TokenizedPair]]:
    starts: list[int] = []
    used, seen = 0, set[bytes]()
    for place, pair in enumerate(pairs):
        prompt = pair.prompt_ids.tobytes()
        parts = {b"": pair.prompt_ids, b"+": pair.chosen_ids, b"-": pair.rejected_ids}
        keys = {prompt + (ids.tobytes() if mark else b""): len(ids) for mark, ids in parts.items()}
        extra = sum(size for key, size in keys.items() if key not in seen)
        if not starts or used + extra > budget:
            starts.append(place)
            used, seen, extra = 0, set(), sum(keys.values())
        used, seen = used + extra, seen | set(keys)
    return cut_at(pairs, starts)


def pack_runs(
    model: nn.Module, pairs: Sequence[TokenizedPair], *, budget: int
) -> Iterator[tuple[PreferenceBatch, Sequence[TokenizedPair]]]:
    """Yield micro-batches of pairs on the model's device, each with the pairs it came from."""
    device = device_of(model)
    for run in in_step(model, split_pairs_by_tokens(pairs, budget=budget)):
        made = list(run)
        yield pack_pairs(made).to(device), made


@dataclass(frozen=True)
class PairMeasures:
    """How a set of pairs is told apart."""

    margins: Tensor
    """[P] score of chosen less score of rejected."""
    losses: Tensor
    """[P] nats."""

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen response scores higher; a draw counts half."""
        return _accuracy(self.margins)

    def summary(self, stage: str, prefix: str = "") -> dict[str, float]:
        """Mean loss, accuracy and mean margin as ``<stage>/<prefix><quantity>``."""
        return {
            f"{stage}/{prefix}loss": float(self.losses.double().mean()),
            f"{stage}/{prefix}accuracy": self.accuracy,
            f"{stage}/{prefix}margin": float(self.margins.double().mean()),
        }

    def accuracy_by_length(self, pairs: Sequence[TokenizedPair], stage: str) -> dict[str, float]:
        """Held-out accuracy where chosen is shorter, as long, or longer; empty groups left out."""
        names = [length_bucket(pair) for pair in pairs]
        return {
            f"{stage}/heldout_accuracy_{bucket}": _accuracy(
                self.margins[torch.tensor([name == bucket for name in names])]
            )
            for bucket in sorted(set(names))
        }


def length_bucket(pair: TokenizedPair) -> str:
    """``chosen_shorter``, ``equal_length`` (within 10%) or ``chosen_longer``, in tokens."""
    chosen, rejected = len(pair.chosen_ids), len(pair.rejected_ids)
    if abs(chosen - rejected) <= LENGTH_TOLERANCE * max(chosen, rejected):
        return "equal_length"
    return "chosen_shorter" if chosen < rejected else "chosen_longer"


def join_measures(parts: Sequence[PairMeasures], num_pairs: int) -> PairMeasures:
    """Put the measures of this process's micro-batches, and of all processes, in the pairs' order.

    Args:
        parts: of this process's share of the pairs.
        num_pairs: of all processes.
    """
    return PairMeasures(
        margins=processes.gather_rows(_concatenated([part.margins for part in parts]), num_pairs),
        losses=processes.gather_rows(_concatenated([part.losses for part in parts]), num_pairs),
    )


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)).cpu() if parts else torch.empty(0)


def pair_rows(*parts: Sequence[TokenizedPair]) -> Iterator[bytes]:
    """Bytes of all pairs in order and where each part ends, to identify the data of a run."""
    yield from (str(len(part)).encode() for part in parts)
    for pair in chain.from_iterable(parts):
        yield pair.prompt_ids.tobytes()
        yield pair.chosen_ids.tobytes()
        yield pair.rejected_ids.tobytes()
        yield repr((pair.probability, pair.margin)).encode()


def places_of_other_prompts(prompts: Iterable[TokenIds]) -> NDArray[np.int64]:
    """Find each row one whose prompt is another: of the rows of the prompt before, in turn.

    The first prompt takes those of the last.

    Args:
        prompts: [N] token ids of the rows' prompts.

    Returns:
        [N] places of rows.

    Raises:
        DataError: all prompts are the same.
    """
    runs: list[tuple[bytes, range]] = []
    start = 0
    for prompt, same in groupby(ids.tobytes() for ids in prompts):
        end = start + len(list(same))
        runs.append((prompt, range(start, end)))
        start = end
    before = next((rows for prompt, rows in reversed(runs) if prompt != runs[0][0]), None)
    if before is None:
        raise DataError(
            "policy: loss kto measures the KL on responses to other prompts, but all responses are"
            " to one prompt; give more prompts"
        )
    givers = np.empty(start, dtype=np.int64)
    for _, rows in runs:
        givers[rows.start : rows.stop] = before.start + np.arange(len(rows)) % len(before)
        before = rows
    return givers


def require_pairs(stage: str, **parts: Sequence[object]) -> None:
    """Raise ``DataError`` naming the first of ``parts`` that is empty."""
    for name, rows in parts.items():
        if not rows:
            raise DataError(f"{stage}: no {name} rows")


def _accuracy(margins: Tensor) -> float:
    wins = (margins > 0).double() + (margins == 0).double() / 2
    return float(wins.mean())
