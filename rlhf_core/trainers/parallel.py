"""Run independent work on the cores of one machine."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from rlhf_core import processes

Result = TypeVar("Result")


def side_by_side(*tasks: Callable[[], Result], allowed: bool = True) -> list[Result]:
    """Run tasks that share no tensor they write, one thread each; results in order.

    On a CPU, two small models trained next to each other with half of the cores each keep all of
    them busier than either would alone. Each task's operations keep their order and use their
    share of the cores, so the results are the same every time. With fewer cores than tasks, where
    it is not ``allowed``, or where several processes train and have to add up in one order, one
    task follows the other.

    An exception of a task is raised when all have ended, the first task's first.
    """
    cores = torch.get_num_threads()
    if not allowed or cores < len(tasks) or not processes.alone():
        return [task() for task in tasks]
    torch.set_num_threads(cores // len(tasks))
    try:
        # New threads every time: a thread takes its number of cores when it first computes.
        with ThreadPoolExecutor(len(tasks)) as pool:
            futures = [pool.submit(task) for task in tasks]
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(cores)
