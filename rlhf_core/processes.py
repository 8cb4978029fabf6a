"""The processes that train one model together; the only module that knows there may be several.

Each takes the rows ``rank::size`` of every batch, and keeps whole models unless their layers are
divided (``models.sharding``). Losses are sums over the
rows of one process divided by the number of the whole batch, and gradients are added up over all of
them, so that a step is what one process would take, to rounding. Whatever decides reads sums over
all processes: it decides alike everywhere.

Inside ``in_team`` all of this is so among the processes of a team, which do something that the
others do not.

Where ``torch.distributed`` was not started there is one process, and every function hands back what
it was given.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_core.errors import PeerLostError, ProcessError, RlhfError

Shared = TypeVar("Shared", bound=Sequence[object] | Tensor)
Message = TypeVar("Message")

BUCKET_ELEMENTS = 1 << 23
"""Gradients are added up in runs of so many numbers: few messages, little memory beside them."""
PATIENCE_OF_TEAMS = timedelta(days=7)
"""A team waits for another as long as that computes. Who is gone is noticed without it."""


@dataclass(frozen=True)
class Team:
    """Some of the processes; ``in_team`` has them work together without the others."""

    members: range
    """Numbers among all processes."""
    group: dist.ProcessGroup

    @classmethod
    def of(cls, members: range) -> "Team":
        """Form a team; every process has to, of as many teams and in the same order."""
        return cls(members, dist.new_group(list(members), timeout=PATIENCE_OF_TEAMS))


_TEAM: ContextVar[Team | None] = ContextVar("team", default=None)


@contextmanager
def in_team(team: Team) -> Iterator[None]:
    """Inside, "all processes" are those of ``team``, of which this one has to be."""
    before = _TEAM.set(team)
    try:
        yield
    finally:
        _TEAM.reset(before)


def size() -> int:
    """Return how many processes train together."""
    if (team := _TEAM.get()) is not None:
        return len(team.members)
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    if not dist.is_initialized():
        return 0
    team, number = _TEAM.get(), dist.get_rank()
    return number if team is None else team.members.index(number)


def alone() -> bool:
    """Return whether there is one process."""
    return size() == 1


def is_main() -> bool:
    """Return whether this process writes files: one of all does, whatever its team."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(rows: Shared) -> Shared:
    """Return what of ``rows`` is this process's: ``rows[rank::size]``, none where they run out."""
    return rows if alone() else rows[rank() :: size()]  # type: ignore[return-value]


def total(*values: float) -> tuple[float, ...]:
    """Sum each of ``values`` over the processes, in float64."""
    if alone():
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    _reduce(sums)
    return tuple(sums.tolist())


def most(number: int) -> int:
    """Return the largest of the numbers that the processes give."""
    if alone():
        return number
    largest = torch.tensor([number], dtype=torch.int64)
    _reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_rows(own: Tensor, num_rows: int) -> Tensor:
    """Put the shares of all processes together, in the order of the rows.

    Args:
        own: [rows of this process, ...], what ``share`` of ``num_rows`` rows became.
        num_rows: of all processes.

    Returns:
        [num_rows, ...] on every process.
    """
    if alone():
        return own
    is_bool = own.dtype == torch.bool
    rows = own.new_zeros((num_rows, *own.shape[1:]), dtype=torch.uint8 if is_bool else None)
    rows[rank() :: size()] = own.to(rows.dtype)
    _reduce(rows)  # every row has one process that is not at 0
    return rows.bool() if is_bool else rows


def all_gather(own: Tensor) -> Tensor:
    """Concatenate [m] numbers of every process, m of its own: [M], alike on every process."""
    if alone():
        return own
    # By sums of what is zero elsewhere: torch's own all_gather wants equal lengths.
    counts = torch.zeros(size(), dtype=torch.int64)
    counts[rank()] = len(own)
    _reduce(counts)
    lengths = [int(count) for count in counts]
    start = sum(lengths[: rank()])
    everything = own.new_zeros(sum(lengths), dtype=own.dtype)
    everything[start : start + len(own)] = own
    _reduce(everything)
    return everything


@torch.no_grad()
def add_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Make every gradient the sum of those of all processes.

    A weight that no process's rows reach keeps no gradient, as with one process. The order of
    addition is set by the places of the numbers alone: the same bits every time.
    """
    if alone():
        return
    reached = torch.tensor([weight.grad is not None for weight in parameters], dtype=torch.int32)
    _reduce(reached, dist.ReduceOp.MAX)
    gradients: list[Tensor] = []
    for weight, counts in zip(parameters, reached.tolist(), strict=True):
        if counts:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradients.append(weight.grad)
    _in_buckets(gradients, _reduce)


def all_gather_object(own: Message) -> list[Message]:
    """Return what each process tells, in the order of their numbers; a message is pickled."""
    if alone():
        return [own]
    told = [own] * size()
    _naming_the_lost(lambda: dist.all_gather_object(told, own, group=_group()))
    return told


@torch.no_grad()
def broadcast(src: int, tensors: Iterable[Tensor]) -> None:
    """Make every process's ``tensors``, alike in shape and type, those of ``src``.

    Args:
        src: its number among all processes, also in a team.
        tensors: as many on every process; written in place.
    """
    if alone():
        return

    def send(flat: Tensor) -> None:
        _naming_the_lost(lambda: dist.broadcast(flat, src, group=_group()))

    _in_buckets(tensors, send)


def require_alike(what: str, value: str | int) -> None:
    """Check that every process has the same value.

    Raises:
        ProcessError: they differ; training on would mix models.
    """
    if alone():
        return
    # Largest number and largest negative in one message: they cancel where all are alike.
    number = int(hashlib.sha256(str(value).encode()).hexdigest()[:15], 16)
    ends = torch.tensor([number, -number], dtype=torch.int64)
    _reduce(ends, dist.ReduceOp.MAX)
    if ends.sum() != 0:
        raise ProcessError(
            f"the processes differ in {what} (one has {value}): all need the same files, on a disk "
            "that every machine of the run sees"
        )


def wait_for_all() -> None:
    """Wait until every process is here."""
    if not alone():
        _reduce(torch.zeros(1))


def _reduce(values: Tensor, by: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> None:
    """Reduce ``values`` in place over all processes.

    Raises:
        PeerLostError: another process is gone.
    """
    _naming_the_lost(lambda: dist.all_reduce(values, by, group=_group()))


def _group() -> dist.ProcessGroup | None:
    """Return the team's; None, as torch has it, are all processes."""
    team = _TEAM.get()
    return None if team is None else team.group


@contextmanager
def lost_processes_reported() -> Iterator[None]:
    """Raise as ``PeerLostError`` what a library's own collective raises where a process is gone."""
    try:
        yield
    except RlhfError:
        raise
    except RuntimeError as error:
        if _in_collective(error):
            raise _lost(error) from error
        raise


def _in_collective(error: RuntimeError) -> bool:
    """Gloo has no type of error; what it says begins with a file of its own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _naming_the_lost(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: RuntimeError) -> PeerLostError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return PeerLostError(f"another process of the training is gone: {said}")


def _in_buckets(tensors: Iterable[Tensor], collective: Callable[[Tensor], object]) -> None:
    """Run an in-place ``collective`` over tensors, many in one message."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        collective(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield neighbours of one type and place, up to ``BUCKET_ELEMENTS`` of them together."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        like = not bucket or (bucket[0].dtype, bucket[0].device) == (
            tensor.dtype,
            tensor.device,
        )
        if bucket and (not like or held + tensor.numel() > BUCKET_ELEMENTS):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket
