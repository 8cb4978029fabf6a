"""torchrun's agent in a process of its own: starts the ranks of one training, and ends them.

``python -m rlhf_core.stages.distributed.agent TASK PARENT``; the stage starts it and owns it. A
stage that is killed cannot end it: then it ends its ranks and itself.
"""

import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rlhf_core.stages.distributed.task import (
    FAILED,
    LOGS,
    RankFailure,
    RankFailures,
    RankTask,
    end_with,
)
from rlhf_core.storage.records import atomic_file, read_record

LOOPBACK = "127.0.0.1"
RANK = "rlhf_core.stages.distributed.rank"


def main(task_file: Path, parent: int) -> int:
    """Run all ranks to their end; return 1 after writing down which of them failed."""
    end_with(parent, signal.SIGTERM)
    task = read_record(task_file, RankTask)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=task.processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{LOOPBACK}:0",
        local_addr=LOOPBACK,
        max_restarts=0,  # a retry of the stage goes on from its last checkpoint
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(task.folder / LOGS), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", RANK, str(task_file))
    except ChildFailedError as error:
        failures = tuple(
            RankFailure(rank=rank, pid=failure.pid, exit_code=failure.exitcode)
            for rank, failure in sorted(error.failures.items())
        )
        with atomic_file(task.folder / FAILED) as stream:
            stream.write(RankFailures(failures=failures).model_dump_json().encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
