"""What reward-model and DPO training share: batches of pairs, and how well pairs are told apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.errors import DataError
from rlhf_core.models import device_of
from rlhf_core.models.sharding import in_step
from rlhf_core.tokenization import PreferenceBatch, TokenizedPair, evenly, pack_pairs
from rlhf_core.trainers.loop import plan_batches

LENGTH_TOLERANCE = 0.1
"""Responses whose lengths differ by less than this share of the longer count as equally long."""


def plan_pair_batches(
    pairs: Sequence[TokenizedPair], *, batch_size: int, num_epochs: int, seed: int
) -> list[list[int]]:
    """Lay out every batch in advance, the pairs of one prompt together (Ouyang 2022, sec. 3.5)."""
    groups: dict[bytes, list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(pair.prompt_ids.tobytes(), []).append(index)
    return plan_batches(
        list(groups.values()), batch_size=batch_size, num_epochs=num_epochs, seed=seed
    )


def split_pairs_by_tokens(
    pairs: Sequence[TokenizedPair], *, budget: int
) -> list[list[TokenizedPair]]:
    """Cut pairs into even runs within ``budget`` tokens; what pairs share is counted once."""
    return evenly(partial(_filled, pairs), budget=budget)


def _filled(pairs: Sequence[TokenizedPair], budget: int) -> list[list[TokenizedPair]]:
    runs: list[list[TokenizedPair]] = []
    used, seen = 0, set[bytes]()
    for pair in pairs:
        prompt = pair.prompt_ids.tobytes()
        parts = {b"": pair.prompt_ids, b"+": pair.chosen_ids, b"-": pair.rejected_ids}
        keys = {prompt + (ids.tobytes() if mark else b""): len(ids) for mark, ids in parts.items()}
        extra = sum(size for key, size in keys.items() if key not in seen)
        if not runs or used + extra > budget:
            runs.append([])
            used, seen, extra = 0, set(), sum(keys.values())
        runs[-1].append(pair)
        used, seen = used + extra, seen | set(keys)
    return runs


def pack_runs(
    model: nn.Module, pairs: Sequence[TokenizedPair], *, budget: int
) -> Iterator[tuple[PreferenceBatch, Sequence[TokenizedPair]]]:
    """Yield micro-batches of pairs on the model's device, each with the pairs it came from."""
    device = device_of(model)
    for run in in_step(model, split_pairs_by_tokens(pairs, budget=budget)):
        yield pack_pairs(run).to(device), run


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
        margins=processes.whole(_concatenated([part.margins for part in parts]), num_pairs),
        losses=processes.whole(_concatenated([part.losses for part in parts]), num_pairs),
    )


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)).cpu() if parts else torch.empty(0)


def pair_rows(*parts: Sequence[TokenizedPair]) -> list[bytes]:
    """Bytes of all pairs in order and where each part ends, to identify the data of a run."""
    sizes = [str(len(part)).encode() for part in parts]
    return sizes + [
        row
        for part in parts
        for pair in part
        for row in (
            pair.prompt_ids.tobytes(),
            pair.chosen_ids.tobytes(),
            pair.rejected_ids.tobytes(),
            repr((pair.probability, pair.margin)).encode(),
        )
    ]


def require_pairs(stage: str, **parts: Sequence[object]) -> None:
    """Raise ``DataError`` naming the first of ``parts`` that is empty."""
    for name, rows in parts.items():
        if not rows:
            raise DataError(f"{stage}: no {name} rows")


def _accuracy(margins: Tensor) -> float:
    wins = (margins > 0).double() + (margins == 0).double() / 2
    return float(wins.mean())
