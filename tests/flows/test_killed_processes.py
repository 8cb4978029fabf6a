"""Kills at random moments of trainings in two processes: nothing is left, and the command goes on.

Real `rlhf` commands, Prefect's temporary server included. Which process, which step and how long
after it are drawn with the seed; when the signal arrives within a step is the machine's doing.
"""

import json
import logging
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest

from rlhf_core.models.files import weights_sha256
from tests.flows.mortal import MARK, marked
from tests.flows.served import RLHF, ROOT, until
from tests.flows.tiny import CONFIG, SETTINGS, Workplace

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("faults")]

logger = logging.getLogger(__name__)

SEED = 15
RANK, AGENT = "rlhf_core.stages.distributed.rank", "rlhf_core.stages.distributed.agent"
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
LONGER = {
    "sft": {"num_epochs": 40, "batch_size": 8, "checkpoint_every": 1},
    "policy": {**SETTINGS["policy"], "num_iterations": 24},
}
TWO = ("--set", "distributed.processes=2")
DIVIDED = (*TWO, "--set", "distributed.shard=layers")
DRILLS = {
    "rank": ("policy", TWO, (KILL, KILL, TERM, KILL)),
    "agent": ("sft", DIVIDED, (KILL, TERM, KILL, KILL)),
    "command": ("sft", TWO, (KILL, INT, KILL, TERM)),
}
"""Who is killed, in which stage, trained how, and by which signals, one after the other."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, fresh_database, mortal):
    """The tiny demo with longer trainings; what they start from is there."""
    made = Workplace(tmp_path_factory.mktemp("drill") / "work", fresh_database, mortal, **LONGER)
    for stage in ("prepare", "sft", "reward", "judge"):
        made.carry_out(stage, "run-1")
    return made


@dataclass(frozen=True)
class Kill:
    """What came of one."""

    whom: str
    number: signal.Signals
    step: int
    """The last step that was reported before."""
    status: int
    """Of the command."""
    said: str
    seconds: float
    """Until no process was left."""


class Drill:
    """One stage of a run of its own, started again and again."""

    def __init__(self, path, whom, dice):
        self.path, self.whom, self.dice = path, whom, dice
        self.stage, self.how, self.numbers = DRILLS[whom]
        self.mark = f"drill-{whom}-{os.getpid()}"
        self.run, self.reached, self.kills = 1, 0, []
        self.whole = f"{whom}-whole"

    @property
    def name(self):
        return f"{self.whom}-{self.run}"

    def folder(self, name):
        return self.path / f"runs/{name}/{self.stage}"

    def weights(self, name):
        return weights_sha256(self.folder(name) / "model")

    def words(self, name):
        upstream = ("--sft", "models:/rlhf-sft/1", "--reward", "models:/rlhf-reward/1")
        judge = ("--judge", "models:/rlhf-judge/1", "--new-run")
        more = (*upstream, *judge) if self.stage == "policy" else ()
        return (self.stage, CONFIG, "--run-id", name, *self.how, *more)

    def start(self):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "PREFECT_", "RLHF_"))
        }
        own = {MARK: self.mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [str(RLHF), *self.words(self.name)]
        with (self.path / f"{self.name}.log").open("a") as log:
            return subprocess.Popen(
                command, cwd=self.path, env=kept | own, stdout=log, stderr=log,
                # As in a terminal: a shell's background jobs, and what they start, ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(INT, signal.SIG_DFL),
            )  # fmt: skip

    def steps(self, name=None):
        """Attempts of a run so far, and the steps that the newest has reported, of how many."""
        folder = self.folder(name or self.name) / "processes"
        attempts = sorted(folder.glob("*"), key=lambda one: int(one.name))
        if not attempts or not (lines := attempts[-1] / "lines.jsonl").exists():
            return len(attempts), []
        whole = [line for line in lines.read_text().splitlines(True) if line.endswith("\n")]
        events = [json.loads(line) for line in whole]
        return len(attempts), [(event[2], event[3]) for event in events if event[0] == "step"]

    def victims(self, command):
        if self.whom == "command":
            return [psutil.Process(command.pid)] if self.of(AGENT) else []
        return self.of(RANK if self.whom == "rank" else AGENT)

    def of(self, module):
        return [one for one in marked(self.mark) if module in one.cmdline()]

    def kill_once(self, number):
        """Start the command and kill; return whether it was in time."""
        before, (_, total) = self.steps()[0], self.steps(self.whole)[1][-1]
        wanted = 0  # as soon as there is somebody to kill, or some steps later
        if self.reached < total - 2:
            wanted = self.dice.choice((0, self.dice.randint(self.reached + 1, total - 2)))
        delay, command = self.dice.uniform(0.0, 0.5), self.start()

        def moment():
            attempts, seen = self.steps()
            far = attempts > before and (not wanted or (seen and seen[-1][0] >= wanted))
            return command.poll() is not None or (far and self.victims(command))

        while not (found := moment()):  # at the latest, the command ends
            time.sleep(0.1)
        if found is not True:
            time.sleep(delay)
            with suppress(psutil.NoSuchProcess):
                self.dice.choice(found).send_signal(number)
        killed, status = time.monotonic(), command.wait()
        until(lambda: not marked(self.mark), lambda: f"left: {marked(self.mark)}")
        if status == 0:
            assert found is True or self.whom != "command", f"it did not mind {number.name}"
            assert self.weights(self.name) == self.weights(self.whole)
            self.run, self.reached = self.run + 1, 0
            return False
        seconds, (_, seen) = time.monotonic() - killed, self.steps()
        said = (self.path / f"{self.name}.log").read_text().strip().splitlines()[-1]
        self.reached = seen[-1][0] if seen else self.reached
        self.kills.append(Kill(self.whom, number, self.reached, status, said, seconds))
        logger.info("%s", self.kills[-1])
        return True

    def go_on(self):
        """Let the command end; return the first step that it took."""
        command = self.start()
        assert command.wait() == 0, (self.path / f"{self.name}.log").read_text()[-4000:]
        assert marked(self.mark) == []
        return self.steps()[1][0][0]


@pytest.mark.parametrize("whom", DRILLS)
def test_whoever_is_killed_all_end_and_the_same_command_ends_in_the_same_bits(whom, workplace):
    drill = Drill(workplace.path, whom, random.Random(f"{SEED} {whom}"))
    logger.info("seed=%d", SEED)
    workplace.mortal.rlhf(workplace.path, *drill.words(drill.whole))
    for number in drill.numbers:
        while not drill.kill_once(number):
            pass
    began = drill.go_on()
    assert drill.weights(drill.name) == drill.weights(drill.whole)
    assert began >= drill.reached - 2, "it did not go on from its last checkpoint"
    expected = {
        "rank": {KILL: "was ended by SIGKILL", TERM: "was ended by SIGTERM"},
        "agent": {KILL: "their launcher, which was ended by SIGKILL", TERM: "launcher"},
        "command": {},
    }[whom]
    for kill in drill.kills:
        statuses = {KILL: -KILL, TERM: 128 + TERM, INT: 128 + INT}
        assert kill.status == (statuses[kill.number] if whom == "command" else 2), kill
        assert expected.get(kill.number, "") in kill.said, kill
