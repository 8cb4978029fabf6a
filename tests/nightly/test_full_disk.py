"""A small disk under every place that commands write to, filled more and more, under every stage.

Each ends in one line that names a file there, or has had room enough; with room again the same
command ends as if nothing had happened.
"""

import re
import shutil
import subprocess
import sys
from contextlib import ExitStack

import pytest

from rlhf_core.models.files import weights_sha256
from tests.disks import SmallDisk
from tests.flows.mortal import Mortal
from tests.flows.registered import check_versions
from tests.flows.tiny import CONFIG, ROOT, STAGES, TRAINED, Workplace, make_tiny

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("small_disks")]

PLACES = ("data", "runs", "mlartifacts", "tmp", ".")
"""The last is where MLflow's database lies, and all that has no disk of its own."""
ROOMS = (0, 4_096, 16_384, 65_536, 150_000, 300_000, 600_000, 1_200_000)
FULL = re.compile(r"cannot be written: .*(No space left on device|os error 28).*; \S+")
OWN = "from tests.forked_imports import load_everything; load_everything()"
FEEDBACK = {
    "num_prompts": 8,
    "labeler": {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"},
}


class Started:
    """Starts Python anew: libraries take a place for temporary files when they are imported."""

    def python(self, code, *arguments, env):
        return subprocess.Popen(
            [sys.executable, "-c", f"{OWN}\n{code}", *map(str, arguments)],
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


class Full:
    """The tiny demo, each of its places on a small disk of its own; every stage done once."""

    def __init__(self, path, database, log, stack):
        self.path, self.disks = path, {}
        for name in reversed(PLACES):
            self.disks[name] = SmallDisk(path / name)
            stack.callback(self.disks[name].take_away)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(path / "tmp"))
            self.mortal = Mortal(log, Started())
        stack.callback(self.mortal.end)
        make_tiny(path / "making", feedback=FEEDBACK)
        for made in ("data/raw", "data/base", CONFIG):
            shutil.move(path / "making" / made, path / made)
        shutil.rmtree(path / "making")
        shutil.copy(database, path / "mlflow.db")
        self.work = object.__new__(Workplace)
        self.work.path, self.work.mortal = path, self.mortal
        for stage in STAGES:
            self.work.carry_out(stage, "run-0")
        self.weights = self.work.weights("run-0")
        self.attempts = 0

    def attempt(self, place, room, words):
        """Run a command with so much room; returns whether it was refused, in one line."""
        said, done = self.mortal.log.stat().st_size, statuses_of(words)
        with self.disks[place].with_room(room):
            ended = self.mortal.rlhf(self.path, *words, may_end=(*done, 2))
            lines = self.mortal.log.read_bytes()[said:].decode().splitlines()
        if ended["status"] in done:
            return False
        text = "\n".join(lines)
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, text
        assert FULL.search(errors[0]), text
        assert "Traceback" not in text, text
        assert place == "." or f"{place}" in errors[0].partition(" cannot")[0], text
        left = [path for path in self.path.rglob("*.tmp") if ".rlhf" not in path.parts]
        assert left == [], text
        if place != ".":  # where its database is full, nothing can be written on a run
            assert self.running() == [], text
        return True

    def running(self):
        (experiment,) = self.work.client.search_experiments(filter_string="name = 'rlhf'")
        found = self.work.client.search_runs([experiment.experiment_id])
        return [run.info.run_name for run in found if run.info.status == "RUNNING"]


@pytest.fixture(scope="module")
def full(tmp_path_factory, fresh_database):
    folder = tmp_path_factory.mktemp("small")
    with ExitStack() as stack:
        yield Full(folder / "work", fresh_database, folder / "log.txt", stack)


def words_of(stage, run):
    if stage == "promote":
        return ("promote", "models:/rlhf-policy/1")
    if stage == "collect":
        return ("collect", CONFIG, "--set", f"feedback.seed={run}")
    role = ("--role", "judge") if stage == "judge" else ()
    new = ("--new-run",) if stage in (*TRAINED[1:], "evaluate") else ()
    return ("reward" if role else stage, CONFIG, "--run-id", f"run-{run}", *role, *new)


def statuses_of(words):
    """Say how a command ends that has done its work: an evaluation with whatever verdict."""
    return (0, 1) if words[0] == "evaluate" else (0,)


CASES = [
    ("data", "prepare"),
    *(("runs", stage) for stage in STAGES if stage != "promote"),
    *(("mlartifacts", stage) for stage in (*TRAINED, "evaluate")),
    *(("tmp", stage) for stage in ("sft", "evaluate")),
    *((".", stage) for stage in ("sft", "policy", "promote")),
    ("data", "collect"),
]


@pytest.mark.parametrize(("place", "stage"), CASES)
def test_a_full_disk_is_one_line_and_loses_nothing(full, place, stage):
    refused = 0
    for room in ROOMS:
        full.attempts += 1
        full.work.start_over(stage, full.attempts)
        words = words_of(stage, full.attempts)
        if not full.attempt(place, room, words):
            break
        refused += 1
        full.mortal.rlhf(full.path, *words, may_end=statuses_of(words))
        if stage in TRAINED:
            model = full.path / f"runs/run-{full.attempts}/{stage}/model"
            assert weights_sha256(model) == full.weights[stage]
    assert refused
    assert full.running() == []


def test_votes_that_the_disk_does_not_take_are_asked_for_again(full):
    full.attempts += 1
    full.mortal.rlhf(full.path, *words_of("collect", full.attempts))
    (collection, *_) = sorted((full.path / "data/collected").glob("[!.]*"))
    words = ("label", "push", collection.name, CONFIG)
    assert full.attempt("data", 0, words)
    full.mortal.rlhf(full.path, *words)


def test_in_the_end_every_version_is_whole_and_there_once(full):
    check_versions(full.work.client, judged=("sft", "reward", "judge"))
