"""How threads that wait should wait: a step of SFT by every way, alone and beside busy processes.

    .venv/bin/python benchmarks/threads.py             # on every core of this machine
    .venv/bin/python benchmarks/threads.py --rounds 20 --busy 2

All ways are processes that take turns, step by step, so that what else the machine does meets all
of them alike. Ratios are to one thread. What is waited for is the end of each operation, thousands
of times a step; a thread that sleeps has to be woken, one that spins holds a core.
"""

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import joblib
import psutil
from busy import busy
from results import keep
from sides import Side, environment, load
from work import Size, write_models, write_rows

SIZES = {
    "the demo's model": Size(hidden=128, heads=4, vocabulary=1_024),
    "2.6 times as wide": Size(hidden=336, heads=6, vocabulary=4_096),
}
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
WAYS = {
    "one thread": {},
    "sleep at once": PASSIVE,
    "spin 1,000 times": PASSIVE | {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000 times": PASSIVE | {"GOMP_SPINCOUNT": "10000"},
    "spin 100,000 times": PASSIVE | {"GOMP_SPINCOUNT": "100000"},
    "libgomp's own (300,000)": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--busy", type=int, default=2, help="processes that only count")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=[*SIZES])
    options = parser.parse_args()
    for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(variable, None)
    for name in options.models:
        size = SIZES[name]
        with tempfile.TemporaryDirectory() as folder:
            write_models(Path(folder), size)
            write_rows(Path(folder), size)
            for beside in (0, options.busy):
                compare(name, Path(folder), beside, options.rounds)


def compare(model: str, folder: Path, beside: int, rounds: int) -> None:
    """Time one model's step by every way beside so many busy processes."""
    with ExitStack() as stack:
        sides = {
            way: stack.enter_context(side(folder, way, changes)) for way, changes in WAYS.items()
        }
        for one in sides.values():
            one.ask("step")
        before, load_before = psutil.cpu_times(), load()
        stack.enter_context(busy(beside))
        taken = [{way: one.ask("step") for way, one in sides.items()} for _ in range(rounds)]
    after = psutil.cpu_times()
    stolen = (after.steal - before.steal) / (sum(after) - sum(before))
    for way in WAYS:
        ratios = [answers["one thread"]["wall"] / answers[way]["wall"] for answers in taken]
        row = {
            "ratios": ratios,
            "wall": statistics.median(answers[way]["wall"] for answers in taken),
            "slowest": max(answers[way]["wall"] for answers in taken),
            "processor": statistics.median(answers[way]["cpu"] for answers in taken),
            "stolen": stolen,
            "load": load_before,
            "threads": 1 if way == "one thread" else joblib.cpu_count(),
        }
        keep("threads", f"{model} | {beside} | {way}", row)


def side(folder: Path, way: str, changes: dict[str, str]) -> Side:
    env = environment(1 if way == "one thread" else joblib.cpu_count()) | changes
    return Side(Path(sys.executable), "ours.py", "sft", folder, {}, env)


main()
