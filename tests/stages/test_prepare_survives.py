"""Killed at any moment, or run twice at once: the old dataset or a new one, never half of it."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from rlhf_core.config import PipelineConfig
from rlhf_core.errors import DataError
from rlhf_core.stages.preparation.dataset import read_splits
from tests.stages.prepare_helpers import comparisons, make_config, write

STARTER = """
import json, os, sys
import great_expectations, matplotlib.figure, sklearn.pipeline, krippendorff
from rlhf_core.config import PipelineConfig
from rlhf_core.stages.prepare import prepare_data

for line in sys.stdin:
    children = []
    for config in json.loads(line):
        pid = os.fork()
        if not pid:
            try:
                prepare_data(PipelineConfig.model_validate(config))
            finally:
                os._exit(1 if sys.exc_info()[0] else 0)
        children.append(pid)
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitpid(pid, 0)[1] for pid in children]), flush=True)
"""
"""Loads the libraries once, then a process for every preparation asked for."""

NUM_KILLS = 6

pytestmark = pytest.mark.slow


class Starter:
    """Starts preparations in processes of their own."""

    def __init__(self, forked) -> None:
        self.process = forked.python(STARTER)

    def start(self, *configs: PipelineConfig) -> list[int]:
        line = json.dumps([json.loads(config.model_dump_json()) for config in configs])
        self.process.stdin.write(line + "\n")
        return json.loads(self.process.stdout.readline())

    def wait(self) -> list[int]:
        """Return how the processes ended, as ``os.waitpid`` says it."""
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def starter(forked):
    found = Starter(forked)
    yield found
    found.process.stdin.close()
    found.process.wait()
    found.process.stdout.close()


@pytest.fixture
def configs(tmp_path) -> tuple[PipelineConfig, PipelineConfig]:
    write(tmp_path / "pairs.jsonl", comparisons(300))
    config = make_config(tmp_path)
    return config, config.model_copy(update={"seed": 1})


def prepare(starter: Starter, config: PipelineConfig) -> str:
    starter.start(config)
    assert starter.wait() == [0]
    return read_splits(config.data.output).sha256


def kill(pid: int) -> None:
    """End a process at once, if it has not ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def until(condition) -> None:
    """Wait for a condition without a pause: the moment after it is what counts."""
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited for five minutes")


def unfinished(output: Path) -> list[Path]:
    return list(output.parent.glob(f".{output.name}.*.tmp"))


@pytest.mark.nightly  # at every change: right before the swap and right after it
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(starter, configs):
    first, second = configs
    output = first.data.output
    prepare(starter, first)
    start = time.monotonic()
    shas = {prepare(starter, second)}
    duration = time.monotonic() - start
    shas.add(prepare(starter, first))
    rng, killed = random.Random(0), 0
    for attempt in range(NUM_KILLS):
        for kept in output.parent.glob(f"{output.name}-*"):
            shutil.rmtree(kept)  # else it would be found, and there would be nothing to do
        [pid] = starter.start(configs[(attempt + 1) % 2])
        time.sleep(duration * (attempt + rng.random()) / NUM_KILLS)
        kill(pid)
        killed += starter.wait() == [signal.SIGKILL]
        assert read_splits(output).sha256 in shas
    assert killed
    assert {prepare(starter, config) for config in configs} == shas
    assert not unfinished(output)


@pytest.mark.parametrize("swapped", [False, True], ids=["just before", "just after"])
def test_a_kill_around_the_swap_leaves_one_of_the_two(starter, configs, swapped):
    first, second = configs
    output = first.data.output
    old = prepare(starter, first)
    inode = output.stat().st_ino
    [pid] = starter.start(second)

    def written():
        return any((work / "report.json").exists() for work in unfinished(output))

    # On a busy machine the moment before may be over before it is seen.
    until(lambda: written() or output.stat().st_ino != inode)
    if swapped:
        until(lambda: output.stat().st_ino != inode)
    kill(pid)
    starter.wait()
    found = read_splits(output).sha256
    assert (found != old) == (output.stat().st_ino != inode)
    assert found == old or swapped or not unfinished(output)
    new = prepare(starter, second)
    assert found in (old, new)
    assert (found == new) >= swapped
    assert not unfinished(output)


def test_two_at_once_with_other_settings_take_turns(starter, configs):
    shas = [prepare(starter, config) for config in configs]
    output = configs[0].data.output
    starter.start(configs[0], configs[1], configs[0])
    seen = set()
    for _ in range(20):
        with contextlib.suppress(DataError):  # exchanged while it was read: refused, never mixed
            seen.add(read_splits(output).sha256)
        time.sleep(0.05)
    assert starter.wait() == [0, 0, 0]
    seen.add(read_splits(output).sha256)
    assert seen <= set(shas)
    assert not unfinished(output)
