"""Several processes against one on the demo, by `rlhf` itself: every step's numbers, weights, time.

    .venv/bin/python benchmarks/processes.py           # every stage, one thread a process
    .venv/bin/python benchmarks/processes.py --stages SFT PPO --iterations 50
    .venv/bin/python benchmarks/processes.py --wall    # against two threads: wants a quiet machine

SFT and reward model are the demo's own, DPO that of `configs/demo-dpo.yaml`; PPO is cut to some
iterations. Every setting of a stage begins with the same models, those of one process. What one
process makes of smaller micro-batches, where the same sums are added up in another order, stands
beside it: that much any change of order does. Each training is kept as it ends, and the same
command goes on. `--set KEY=VALUE` changes a setting of all, as in `rlhf run`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from mlflow import MlflowClient
from results import keep
from safetensors.torch import load_file
from sides import environment, load

ROOT = Path(__file__).resolve().parents[1]
RLHF = Path(sys.executable).with_name("rlhf")
NEAR = 1e-5
QUIET = 1.0
"""Processes that want a core, averaged over a minute: with more, times of two are no times."""


@dataclass(frozen=True)
class Stage:
    """A training of the demo."""

    command: str
    file: str
    section: str
    needs: tuple[str, ...]
    """Models that it is given, by the option that names them."""
    micro_batch_tokens: int
    """So few that a batch is several."""
    changes: dict[str, str] = field(default_factory=dict)


LAST = ("policy.selection.num_prompts", "0")
"""The last checkpoint is the model: none is chosen, and so no judge is needed."""
STAGES = {
    "SFT": Stage("sft", "demo.yaml", "sft", (), 512),
    "reward model": Stage("reward", "demo.yaml", "reward", ("sft",), 1_024),
    "DPO": Stage("policy", "demo-dpo.yaml", "policy", ("sft",), 1_024, dict([LAST])),
    "PPO": Stage("policy", "demo.yaml", "policy", ("sft", "reward"), 512, dict([LAST])),
}
LOGGED = {
    "loss": ("loss", "policy_loss", "value_loss"),
    "gradient norm": ("grad_norm", "value_grad_norm"),
    "KL": ("kl",),
    "score or margin": ("reward_model_score", "margin"),
}
"""Columns, and the metrics of a stage that are in each."""


@dataclass(frozen=True)
class Setting:
    """How a stage is trained."""

    changes: dict[str, str]
    threads: int = 1
    smaller: bool = False
    """Whether micro-batches are smaller."""


ONE = "1 process"
SETTINGS = {
    ONE: Setting({"distributed.processes": "1"}),
    "1 process, smaller micro-batches": Setting({"distributed.processes": "1"}, smaller=True),
    "2 processes": Setting({"distributed.processes": "2"}),
    "2 processes, divided layers": Setting(
        {"distributed.processes": "2", "distributed.shard": "layers"}
    ),
}
WALL = {
    "1 process, two threads": Setting({"distributed.processes": "1"}, threads=2),
    "2 processes, one thread each": Setting({"distributed.processes": "2"}),
}


@dataclass(frozen=True)
class Training:
    """One that has ended: its run's folder, and what it took."""

    run: Path
    model: str
    """Address in the registry."""
    processor_seconds: float
    wall_seconds: float
    """Of the whole command: imports, loading and the evaluation at the end included."""
    others: float
    """Share of all cores that other programs had meanwhile."""
    load: float

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Of the model."""
        (folder,) = self.run.glob("*/model")
        return load_file(folder / "model.safetensors")

    @property
    def curves(self) -> dict[str, dict[int, tuple[float, int]]]:
        """Value and time in milliseconds of each metric at each step, by name without its stage."""
        client = MlflowClient(tracking_uri="sqlite:///mlflow.db")
        (experiment,) = client.search_experiments(filter_string="name = 'rlhf'")
        condition = f"tags.`rlhf.run_id` = '{self.run.name}'"
        (found,) = client.search_runs([experiment.experiment_id], condition)
        return {
            name.partition("/")[2]: {
                point.step: (point.value, point.timestamp)
                for point in client.get_metric_history(found.info.run_id, name)
            }
            for name in found.data.metrics
        }

    @property
    def step_seconds(self) -> list[float]:
        """Of each step but the first, by when it was logged."""
        curves = self.curves
        every_step = curves["loss"] if "loss" in curves else curves["kl"]
        times = sorted(moment for _, moment in every_step.values())
        return [(later - earlier) / 1000 for earlier, later in pairwise(times)]


def rlhf(*words: str, threads: int, accepted: tuple[int, ...] = (0, 1)) -> None:
    """Run a command; a gate that says no is no failure here."""
    others = ("RLHF_", "MLFLOW_", "PREFECT_", "PET_")
    kept = {key: one for key, one in environment(threads).items() if not key.startswith(others)}
    with Path("log.txt").open("a") as log:
        print("rlhf", *words, file=log, flush=True)
        done = subprocess.run([RLHF, *words], stdout=log, stderr=log, env=kept)
    if done.returncode not in accepted:
        where = Path("log.txt").absolute()
        sys.exit(f"rlhf {' '.join(words)}: exit status {done.returncode}; see {where}")


def train(
    name: str, run: str, setting: Setting, given: dict[str, str], changes: dict[str, str]
) -> Training:
    """Train a stage as a run of its own, unless it was before with the same settings."""
    stage, note = STAGES[name], Path(f"{run}.json")
    words = [stage.command, str(ROOT / "configs" / stage.file), "--run-id", run]
    words += [] if stage.command == "sft" else ["--new-run"]
    words += [word for role in stage.needs for word in (f"--{role}", given[role])]
    changes = {"data.output": "prepared", **stage.changes, **changes, **setting.changes}
    if setting.smaller:
        changes[f"{stage.section}.micro_batch_tokens"] = str(stage.micro_batch_tokens)
    words += [word for one in changes.items() for word in ("--set", "=".join(one))]
    if not note.exists():
        took = Stopwatch()
        rlhf(*words, "--json", "result.json", threads=setting.threads)
        model = json.loads(Path("result.json").read_text())["model"]["uri"]
        note.write_text(json.dumps({"words": words, "model": model, **took.stop()}))
    kept = json.loads(note.read_text())
    if kept.pop("words") != words:
        sys.exit(f"{note.absolute()}: that training had other settings; give another --out")
    return Training(run=Path("runs") / run, **kept)


class Stopwatch:
    """Seconds by the clock and of processors, and how busy the machine was with other things."""

    def __init__(self) -> None:
        self.began = self._now()

    def stop(self) -> dict[str, float]:
        wall, own, all_busy = (
            later - earlier for earlier, later in zip(self.began, self._now(), strict=True)
        )
        others = max(0.0, all_busy - own) / (wall * (os.cpu_count() or 1))
        return {
            "processor_seconds": own, "wall_seconds": wall, "others": others, "load": load()
        }  # fmt: skip

    @staticmethod
    def _now() -> tuple[float, float, float]:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        machine = psutil.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        own = used.ru_utime + used.ru_stime
        return time.monotonic(), own, sum(machine) - idle


def differences(ours: Training, theirs: Training) -> dict[str, object]:
    """What of a training differs from that of one process, relative to the larger of both."""
    found: dict[str, object] = {}
    first: list[tuple[int, str]] = []
    curves, expected = ours.curves, theirs.curves
    for column, metrics in LOGGED.items():
        worst: list[float] = []
        for metric in metrics:
            if metric not in expected:
                continue
            apart = list(_apart(curves[metric], expected[metric]))
            worst += [size for _, size in apart]
            first += [(step, metric) for step, size in apart if size > NEAR][:1]
        found[column] = max(worst, default=None)
    step, metric = min(first, default=(None, None))
    if (lengths := expected.get("response_length")) is not None:
        ours_of = curves["response_length"]
        unlike = [at for at, (value, _) in lengths.items() if ours_of[at][0] != value]
        found["other_responses"] = min(unlike, default=None)
    found |= {"first": step, "first_metric": metric}
    return found | weight_differences(ours.weights, theirs.weights)


def _apart(
    ours: dict[int, tuple[float, int]], theirs: dict[int, tuple[float, int]]
) -> Iterator[tuple[int, float]]:
    """Yield each step, and by how much its values differ; below 1 in parts of 1.

    A KL begins at 0, where a relative difference would be that of two roundings.
    """
    if ours.keys() != theirs.keys():
        sys.exit(f"steps {sorted(ours.keys() ^ theirs.keys())} were logged by one of both alone")
    for step, (value, _) in sorted(theirs.items()):
        yield step, abs(ours[step][0] - value) / max(1.0, abs(value), abs(ours[step][0]))


def weight_differences(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> dict[str, float]:
    """The largest difference of two weights, and the norm of all over that of the weights."""
    if ours.keys() != theirs.keys():
        sys.exit(f"weights {sorted(ours.keys() ^ theirs.keys())} are in one of both alone")
    apart = {name: (ours[name].double() - theirs[name].double()) for name in theirs}
    norm = sum(float(one.square().sum()) for one in apart.values()) ** 0.5
    size = sum(float(one.double().square().sum()) for one in theirs.values()) ** 0.5
    return {
        "weights": max(float(one.abs().max()) for one in apart.values()),
        "weights_relative": norm / size,
    }


def compare(names: list[str], settings: list[str], changes: dict[str, str]) -> None:
    """Train each stage in each setting, that of one process first, and keep a row of each."""
    for name in names:
        models = models_for(name, changes)
        expected = train(name, run_name(name, ONE), SETTINGS[ONE], models, changes)
        keep("processes", f"{name} | {ONE}", costs(expected))
        for setting in settings:
            trained = train(name, run_name(name, setting), SETTINGS[setting], models, changes)
            row = costs(trained) | differences(trained, expected)
            keep("processes", f"{name} | {setting}", row)


def models_for(name: str, changes: dict[str, str]) -> dict[str, str]:
    """Return addresses of the models that a stage needs, each of one process."""
    models: dict[str, str] = {}
    for needed in ("SFT", "reward model"):
        role = STAGES[needed].command
        if role in STAGES[name].needs:
            made = train(needed, run_name(needed, ONE), SETTINGS[ONE], models, changes)
            models[role] = made.model
    return models


def costs(trained: Training) -> dict[str, float]:
    """Return what a training took."""
    return {
        "processor_seconds": trained.processor_seconds,
        "wall_seconds": trained.wall_seconds,
        "step_seconds": statistics.median(trained.step_seconds),
        "steps": len(trained.step_seconds) + 1,
        "others": trained.others,
        "load": trained.load,
    }


def run_name(stage: str, setting: str) -> str:
    """Return the name of a run."""
    return f"{stage}-{setting}".lower().replace(",", "").replace(" ", "-")


def compare_wall(names: list[str], rounds: int, changes: dict[str, str]) -> None:
    """Let two processes and two threads take turns, and keep seconds of a step by the clock."""
    needed = {name: models_for(name, changes) for name in names}
    if load() > QUIET:
        sys.exit(f"load {load()}: not measured; end what else runs, wait a minute and repeat")
    for name, models in needed.items():
        steps: dict[str, list[float]] = {setting: [] for setting in WALL}
        others = 0.0
        for number in range(1, rounds + 1):
            for setting, how in WALL.items():
                run = f"{run_name(name, setting)}-{number}"
                trained = train(name, run, how, models, changes)
                steps[setting].append(statistics.median(trained.step_seconds))
                others = max(others, trained.others)
        threads, processes = steps.values()
        ratios = [one / two for one, two in zip(threads, processes, strict=True)]
        row = {"ratios": ratios, "one": threads, "two": processes, "others": others, "threads": 2}
        keep("processes_wall", name, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/processes")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS)[1:])
    parser.add_argument("--iterations", type=int, default=8, help="of PPO")
    parser.add_argument("--wall", action="store_true", help="two processes against two threads")
    parser.add_argument("--rounds", type=int, default=3, help="of --wall")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)
    if not Path("data").exists():
        Path("data").symlink_to(ROOT / "data")
    if not Path("prepared").exists():
        demo = str(ROOT / "configs/demo.yaml")
        rlhf("prepare", demo, "--set", "data.output=prepared", threads=1, accepted=(0,))
    STAGES["PPO"].changes["policy.num_iterations"] = str(options.iterations)
    changes = dict(change.split("=", 1) for change in options.set)
    if options.wall:
        timed = [name for name in options.stages if name in ("SFT", "PPO")]
        compare_wall(timed, options.rounds, changes)
    else:
        compare(options.stages, options.settings, changes)


if __name__ == "__main__":
    main()
