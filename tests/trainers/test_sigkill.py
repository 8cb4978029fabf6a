"""SIGKILL at random moments of every trainer: the weights are those of a run left alone."""

import json
import os
import random
import select
import signal
import time

import pytest

NUM_KILLS = 4
MOST_ATTEMPTS = 40

NEST = """
import json, os, sys
from pathlib import Path
import torch
from tests.trainers.ppo_toys import RLOO, train_ppo
from tests.trainers.toys import train_stage

def train(trainer, causal, work):
    if trainer in ("ppo", "rloo"):
        return train_ppo(Path(causal), Path(work), **(RLOO if trainer == "rloo" else {}))[2]
    return train_stage(trainer, Path(causal), Path(work), checkpoint_every=2)[2]

for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(task.pop("threads"))
        print("begun", os.getpid(), flush=True)
        print("done", train(**task), flush=True)
        os._exit(0)
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""
"""Runs as a fork of what has imported torch; every run is a fork of it: a kill costs no start."""


class Nest:
    """Runs one trainer at a time in a process that may be killed."""

    def __init__(self, process):
        self.process = process

    def run(self, threads, kill_after=None, **task):
        """Train; SIGKILL after so many seconds. Return the weights' sha256, or None if killed."""
        self.process.stdin.write(json.dumps({"threads": threads, **task}) + "\n")
        _, pid = self.process.stdout.readline().split()
        ready, _, _ = select.select([self.process.stdout], [], [], kill_after)
        if not ready:
            os.kill(int(pid), signal.SIGKILL)
        answer = self.process.stdout.readline().split()
        if answer[0] == "done":
            assert self.process.stdout.readline().split()[0] == "ended"
            return answer[1]
        assert answer == ["ended", str(int(signal.SIGKILL))]
        return None


@pytest.fixture(scope="module")
def nest(forked):
    process = forked.python(NEST)
    yield Nest(process)
    process.stdin.close()
    assert process.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "threads"),
    [
        ("sft", 1),
        pytest.param("reward", 1, marks=pytest.mark.nightly),
        pytest.param("dpo", 1, marks=pytest.mark.nightly),
        ("ppo", 1),
        pytest.param("ppo", 2, marks=pytest.mark.nightly),
        pytest.param("rloo", 1, marks=pytest.mark.nightly),
    ],
)
def test_sigkill_at_random_moments_does_not_change_the_weights(
    trainer, threads, nest, causal_directory, tmp_path
):
    task = {"trainer": trainer, "threads": threads, "causal": str(causal_directory)}
    started = time.monotonic()
    expected = nest.run(work=str(tmp_path / "whole"), **task)
    seconds = time.monotonic() - started
    generator = random.Random(f"{trainer} {threads}")
    kills = run = 0
    for _ in range(MOST_ATTEMPTS):
        delay = seconds * generator.uniform(0.02, 0.7)
        digest = nest.run(work=str(tmp_path / f"cut-{run}"), kill_after=delay, **task)
        assert digest in (None, expected)
        kills += digest is None
        run += digest is not None  # it came to its end: the next kills are for a new one
        if kills == NUM_KILLS:
            break
    assert nest.run(work=str(tmp_path / f"cut-{run}"), **task) == expected
