"""Which rank or node of a training failed first, and why, from what they left in its folder."""

import json
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rlhf_core import errors
from rlhf_core.errors import ProcessError, RlhfError
from rlhf_core.stages.distributed.task import (
    FAILED,
    LOGS,
    NODES,
    NodesLost,
    RankFailures,
    RankTask,
)
from rlhf_core.storage.records import read_record

AGAIN = "repeat the command, it goes on from the last checkpoint"
SECONDARY = "PeerLostError"
"""What the other ranks raise when one is gone."""


def first_failure(task: RankTask, exit_code: int, folder: Path) -> RlhfError:
    """Say which rank or node failed first, and why.

    torchrun's own first cause is the rank it noticed first. A rank that lost another one is never
    the cause, and the one that was killed has raised nothing.

    Args:
        task: what all ranks were given.
        exit_code: of this node's agent.
        folder: where that left a line on nodes that were lost.
    """
    raised = dict(_raised(task))
    own = {rank: said for rank, said in raised.items() if not said.startswith(SECONDARY)}

    def where(rank: int) -> str:
        node = rank // task.distributed.processes_of_a_node
        return f"its lines are in {task.folder_of(node) / LOGS}"

    if own:
        rank = min(own)
        name, _, message = own[rank].partition(": ")
        known = getattr(errors, name, None)
        of = f"rank {rank} of {task.processes}"
        if isinstance(known, type) and issubclass(known, RlhfError):
            return known(f"{of}: {message}")
        return ProcessError(f"{of} failed: {own[rank]}; {where(rank)}")
    failures = dict(_failures(task))
    ended = {rank: code for rank, code in failures.items() if rank not in raised}
    # Agents end their other ranks by SIGTERM as soon as they notice the first.
    killed = any(code != -signal.SIGTERM for code in ended.values())
    if not killed and (lines := lines_of_lost(folder)):
        return ProcessError(f"{lines}; {AGAIN}")
    if not failures:
        return ProcessError(
            f"the {task.processes} processes ended with their launcher, which "
            f"{how_ended(exit_code)}; {AGAIN}"
        )
    silent = [rank for rank in range(task.processes) if rank not in raised]
    rank = min(ended or silent or raised, key=lambda one: (ended.get(one) == -signal.SIGTERM, one))
    how = how_ended(ended[rank]) if ended else "left before the others"
    return ProcessError(f"rank {rank} of {task.processes} {how}; {where(rank)}; {AGAIN}")


def _ranks(task: RankTask) -> Iterable[tuple[int, int, int]]:
    """Yield each rank, its node, and its number there."""
    settings = task.distributed
    for rank in range(settings.processes):
        yield rank, *divmod(rank, settings.processes_of_a_node)


def _failures(task: RankTask) -> Iterable[tuple[int, int]]:
    """Yield rank and exit code of each that did not end well, on every node."""
    for node in range(task.distributed.nnodes):
        path = task.folder_of(node) / FAILED
        if path.exists():
            first = node * task.distributed.processes_of_a_node
            for failure in read_record(path, RankFailures).failures:
                yield first + failure.rank, failure.exit_code


def lines_of_lost(folder: Path) -> str:
    """Return what an agent says of nodes that were lost."""
    path = folder / NODES
    lines = read_record(path, NodesLost).lines if path.exists() else {}
    return "; ".join(dict.fromkeys(lines.values()))


def _raised(task: RankTask) -> Iterable[tuple[int, str]]:
    """Yield rank and ``Type: message`` of each that torchrun has an error file of."""
    for rank, node, own in _ranks(task):
        for path in (task.folder_of(node) / LOGS).glob(f"*/attempt_0/{own}/error.json"):
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(path.read_text(encoding="utf-8"))["message"]
                yield rank, str(said["message"] if isinstance(said, dict) else said)


def how_ended(exit_code: int) -> str:
    """Say how a process ended, after its name."""
    if exit_code >= 0:
        return f"ended with exit status {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"
