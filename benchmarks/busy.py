"""How much longer a command takes beside busy processes than alone.

``python benchmarks/busy.py -- rlhf run configs/demo.yaml`` runs the command alone and beside two
processes that only count, and prints both times and their ratio. A round that another process
disturbs is seen in the share of the processor that the machine spent on everything else.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import joblib
import psutil

COUNT = "n = 0\nwhile True: n += 1"


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep so many processes counting."""
    counting = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(number)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def seconds(command: list[str], beside: int) -> float:
    """Run the command; exit with its status where it fails."""
    with busy(beside):
        started = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        took = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"the command ended with status {done.returncode}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=2, help="processes that only count")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    others = psutil.cpu_percent(1.0)
    print(f"{joblib.cpu_count()} cores, {others:.0f}% of them busy before the start")
    for number in range(options.rounds):
        alone = seconds(options.command, 0)
        beside = seconds(options.command, options.busy)
        print(
            f"round {number + 1}: alone {alone:.1f} s, beside {options.busy} busy processes "
            f"{beside:.1f} s, {beside / alone:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
