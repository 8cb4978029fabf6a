"""torchrun's agent in a process of its own: starts the ranks of one node, and ends them.

``python -m rlhf_core.stages.distributed.agent lead TASK PARENT`` on node 0, whose stage starts it
and owns it; ``... follow NODE PARENT`` on the others, whose command does. A command that is killed
cannot end its agent: then that ends its ranks and itself.
"""

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rlhf_core.config import DistributedConfig, config_digest
from rlhf_core.errors import ProcessError
from rlhf_core.orphans import end_with
from rlhf_core.stages.distributed import nodes
from rlhf_core.stages.distributed.task import (
    FAILED,
    JOINED,
    LOGS,
    NODES,
    TASK,
    Joined,
    NodesLost,
    NodeTask,
    RankFailure,
    RankFailures,
    RankTask,
)
from rlhf_core.storage.records import read_record, write_record

LOOPBACK = "127.0.0.1"
RANK = "rlhf_core.stages.distributed.rank"
MONITOR_SECONDS = 0.2


class Stopped(ProcessError):
    """Another node has ended; this one ends with it."""


def lead(task_file: Path) -> int:
    """Run all ranks of node 0 to their end; return 1 after writing down which of them failed."""
    task = read_record(task_file, RankTask)
    settings = task.distributed
    if settings.nnodes == 1:
        own = {"rdzv_backend": "c10d", "rdzv_endpoint": f"{LOOPBACK}:0", "local_addr": LOOPBACK}
        return _run_ranks(task, task.folder, run_id=uuid.uuid4().hex, **own)
    lost = {}
    try:
        rendezvous = nodes.host(settings)
    except ProcessError as error:
        write_record(task.folder / NODES, NodesLost(lines={0: str(error)}))
        return 1
    how = "node 0 was ended with its command"
    try:
        rendezvous.gather(task_file.read_text(encoding="utf-8"))
        code = _run_as_node(task, task.folder, settings, rendezvous)
        how = nodes.FINISHED if code == 0 else "node 0 has failed"
        return code
    except ProcessError as error:
        lost[0] = how = str(error)
        return 1
    finally:
        rendezvous.report_end(how)
        lost |= rendezvous.wait_for_ends()
        write_record(task.folder / NODES, NodesLost(lines=lost))


def follow(node_file: Path) -> int:
    """Run the ranks of another node for node 0; return 1 after writing down why they failed."""
    node = read_record(node_file, NodeTask)
    me, rendezvous = f"node {node.distributed.node_rank}", None
    how = f"{me} was ended with its command"
    try:
        rendezvous = nodes.join(node.distributed)
        task = _join(node, rendezvous, node_file.with_name(JOINED))
        folder = task.folder_of(node.distributed.node_rank)
        code = _run_as_node(task, folder, node.distributed, rendezvous)
        how = nodes.FINISHED if code == 0 else f"{me} has failed"
        return code
    except nodes.NothingToTrain:
        how = nodes.FINISHED
        return 0
    except ProcessError as error:
        how = str(error)
        write_record(node_file.with_name(NODES), NodesLost(lines={node.distributed.node_rank: how}))
        return 1
    finally:
        if rendezvous is not None:
            rendezvous.report_end(how)


def _join(node: NodeTask, rendezvous: nodes.Rendezvous, joined: Path) -> RankTask:
    """Take node 0's task, from the disk that both see."""
    said = rendezvous.receive()
    me = f"node {node.distributed.node_rank}"
    try:
        theirs = RankTask.model_validate_json(said)
    except ValueError:
        problem = f"{me} cannot read node 0's task: install the same build on both"
    else:
        problem = _difference(node, theirs, said) or _no_folder(node, theirs)
    rendezvous.answer(problem)
    write_record(joined, Joined(task=theirs.folder / TASK))
    return theirs


def _no_folder(node: NodeTask, theirs: RankTask) -> str:
    """Make this node's folder beside node 0's files; say in a line why there is none."""
    folder = theirs.folder_of(node.distributed.node_rank)
    try:
        folder.mkdir()
    except OSError as error:
        me = f"node {node.distributed.node_rank}"
        return f"{me} cannot write to {folder.parent}: {error.strerror}: its lines belong there"
    return ""


def _difference(node: NodeTask, theirs: RankTask, said: str) -> str:
    """Say in a line what keeps this node from training with node 0; empty where nothing does."""
    me, marker = f"node {node.distributed.node_rank}", theirs.folder / TASK
    role, nnodes = theirs.job.role, theirs.distributed.nnodes
    if role != node.role:
        return f"{me} was started for {node.role} and node 0 for {role}: start the same command"
    if nnodes != node.distributed.nnodes:
        return f"distributed.nnodes is {node.distributed.nnodes} on {me} and {nnodes} on node 0"
    count, here = theirs.processes, node.distributed.processes
    if count != here:
        return f"distributed.processes is {here} on {me} and {count} on node 0"
    try:
        seen = marker.read_text(encoding="utf-8") == said
    except OSError:
        seen = False
    if not seen:
        return (
            f"{me} does not see {marker}, which node 0 wrote: the folders of runs, of prepared "
            "data and of models have to be on a disk that every node has, at the same path"
        )
    if node.digest != config_digest(theirs.job.config):
        return f"{me} has other settings than node 0: give both the same file and the same --set"
    if node.run is not None and node.run.resolve() != theirs.job.directory.parent.resolve():
        run = theirs.job.directory.parent
        return f"{me} was started for the run {node.run} and node 0 for {run}: give both one run"
    return ""


def _run_as_node(
    task: RankTask, folder: Path, settings: DistributedConfig, rendezvous: nodes.Rendezvous
) -> int:
    """Run the ranks of one node of several, and end them when another node has ended."""
    why: list[str] = []

    def end_ranks(line: str) -> None:
        why.append(line)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with rendezvous.watched(end_ranks):
            # Each node has its number, so there is nothing to vote on; and torchrun's other
            # rendezvous starts all ranks again where one more node turns up.
            return _run_ranks(
                task,
                folder,
                run_id=task.folder.name,
                rdzv_backend="static",
                rdzv_endpoint=str(settings.rdzv_endpoint),
                rdzv_configs={"rank": settings.node_rank, "timeout": settings.rdzv_timeout},
            )
    except SignalException:
        if why:
            raise Stopped(why[0]) from None
        raise


def _run_ranks(task: RankTask, folder: Path, **rendezvous: Any) -> int:
    settings = task.distributed
    config = LaunchConfig(
        min_nodes=settings.nnodes,
        max_nodes=settings.nnodes,
        nproc_per_node=settings.processes_of_a_node,
        max_restarts=0,  # a retry of the stage goes on from its last checkpoint
        monitor_interval=MONITOR_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / LOGS), redirects=Std.ALL),
        **rendezvous,
    )
    try:
        given = (str(task.folder / TASK), str(os.getpid()))
        elastic_launch(config, sys.executable)("-u", "-m", RANK, *given)
    except ChildFailedError as error:
        failures = tuple(
            RankFailure(rank=failure.local_rank, pid=failure.pid, exit_code=failure.exitcode)
            for _, failure in sorted(error.failures.items())
        )
        write_record(folder / FAILED, RankFailures(failures=failures))
        return 1
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise SignalException("the command of this agent has ended", signal.Signals(number))


def main(role: str, file: Path, parent: int) -> int:
    """Run as node 0's agent, ``lead``, or as another node's, ``follow``."""
    signal.signal(signal.SIGTERM, _stop)
    roles: dict[str, Callable[[Path], int]] = {"lead": lead, "follow": follow}
    try:
        end_with(parent, signal.SIGTERM)
        return roles[role](file)
    finally:
        if role == "follow" and os.getppid() != parent:  # killed, and so could not
            shutil.rmtree(file.parent, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
