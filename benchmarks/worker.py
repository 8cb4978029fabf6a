"""A side of a comparison: a process that takes one step when told to and says what it cost.

Started by ``sides.py``. It reads one word a line and answers with one line of JSON.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable

import torch

ANSWERS = sys.stdout
"""Where answers go; libraries that print are sent to the error stream instead."""


def answer(**values: object) -> None:
    ANSWERS.write(json.dumps(values) + "\n")
    ANSWERS.flush()


def take_threads() -> None:
    """Take as many threads as ``sides.py`` says; torch would take every core it sees."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matmul_rate() -> float:
    """Floating-point operations a second of a float32 product on one core, right now."""
    left, right = torch.randn(2_048, 768), torch.randn(768, 768)
    started = time.process_time()
    for _ in range(8):
        left @ right
    return 8 * 2.0 * 2_048 * 768 * 768 / (time.process_time() - started)


def bandwidth() -> float:
    """Bytes a second that one core reads from memory, right now."""
    numbers = torch.zeros(1 << 25)
    started = time.process_time()
    for _ in range(4):
        numbers.sum()
    return 4 * numbers.nbytes / (time.process_time() - started)


def rates() -> dict[str, float]:
    """Answer to ``rate``."""
    return {"rate": matmul_rate(), "bandwidth": bandwidth()}


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "wall": time.perf_counter() - self.wall,
            "cpu": time.process_time() - self.cpu,
        }


def serve(step: Callable[[], dict[str, float]]) -> None:
    """Answer ``step`` and ``rate`` until the input ends."""
    answer(ready=True, idle_mb=peak_megabytes())
    for line in sys.stdin:
        if line.strip() == "rate":
            answer(**rates())
            continue
        clock = Clock()
        values = step()
        answer(**clock.read(), **values, peak_mb=peak_megabytes())
