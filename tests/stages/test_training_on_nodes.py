"""Commands on two nodes, which are two launchers on one machine, train one model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import look_up_run, open_run, stage_inputs
from rlhf_core.config import DistributedConfig
from rlhf_core.stages import sft
from rlhf_core.stages.distributed import launch
from rlhf_core.stages.distributed.task import LOGS
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.run import train
from tests.stages.test_nodes import in_thread
from tests.stages.test_several_processes import living_ranks

ROOT = Path(__file__).parents[2]

COMMAND = """
import json, sys
from pathlib import Path
from rlhf_core.adapters.tracking.tracking import open_run, stage_inputs
from rlhf_core.config import PipelineConfig
from rlhf_core.schema import DatasetSplits, RunContext
from rlhf_core.stages import sft
from rlhf_core.stages.distributed.launch import follow_node_0
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.run import train
from rlhf_flows.commands import start
import signal

signal.signal(signal.SIGTERM, start._terminate)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
given = json.loads(Path(sys.argv[1]).read_text())
config = PipelineConfig.model_validate(given["config"])
try:
    if config.distributed.node_rank:
        follow_node_0(config, "sft", None)
    else:
        splits = DatasetSplits.model_validate(given["splits"])
        context = RunContext.model_validate(given["context"])
        directory = context.stage_directory("sft")
        directory.mkdir(parents=True, exist_ok=True)
        job = TrainingJob(
            role="sft", config=config, splits=splits, directory=directory,
            checkpoints=directory / "checkpoints",
        )
        with open_run(config, context, "sft", inputs=stage_inputs(splits)) as run:
            train(job, sft.fit, run, None)
except KeyboardInterrupt:
    sys.exit("stopped")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
"""What `rlhf sft` does on a node, without Prefect."""


@pytest.fixture
def stage(mlflow_home, stage_config, stage_context, small_splits, as_node):
    """Train as node 0 in this process; and how to start any node as a command of its own."""
    short = {"batch_size": 4, "num_epochs": 1, "checkpoint_every": 1}

    class Stage:
        directory = mlflow_home / "one" / "sft"

        def config(self, distributed, **changes):
            config = stage_config()
            own = config.sft.model_copy(update={**short, **changes})
            return config.model_copy(update={"sft": own, "distributed": distributed})

        def context(self, name):
            changes = {"run_id": name, "directory": mlflow_home / name}
            return stage_context.model_copy(update=changes)

        def train(self, distributed, name="one", **changes):
            config, context = self.config(distributed, **changes), self.context(name)
            directory = context.stage_directory("sft")
            directory.mkdir(parents=True, exist_ok=True)
            job = TrainingJob(
                role="sft", config=config, splits=small_splits, directory=directory,
                checkpoints=directory / "checkpoints",
            )  # fmt: skip
            with open_run(config, context, "sft", inputs=stage_inputs(small_splits)) as tracked:
                trained = train(job, sft.fit, tracked, None)
            return trained, tracked.run_id

        def command(self, distributed, **changes):
            given = {
                "config": self.config(distributed, **changes).model_dump(mode="json"),
                "splits": small_splits.model_dump(mode="json"),
                "context": self.context("one").model_dump(mode="json"),
            }
            file = mlflow_home / f"node-{distributed.node_rank}.json"
            file.write_text(json.dumps(given))
            return subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(file)],
                cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip

        def trained_on_two(self, name="one", shard="none", processes=2, **changes):
            first, second = (as_node(node, shard=shard, processes=processes) for node in (0, 1))
            follows = in_thread(
                launch.follow_node_0, self.config(second, **changes), "sft", mlflow_home / name
            )
            trained, run_id = self.train(first, name, **changes)
            assert follows() == trained
            return run_id

        def weights(self, name):
            return load_file(mlflow_home / name / "sft/model/model.safetensors")

    return Stage()


@pytest.mark.nightly  # at every change: how nodes meet, and ranks of one node
def test_two_nodes_train_one_model(stage):
    run_id = stage.trained_on_two()
    assert "sft/loss" in look_up_run(run_id)[1]
    assert mlflow_client().get_run(run_id).data.tags["distributed.nnodes"] == "2"
    assert living_ranks(stage.directory) == []
    assert len(list((stage.directory / "processes/1/node-1" / LOGS).glob("*/*/0/stderr.log"))) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("shard", ["none", "layers"])
def test_two_nodes_end_in_the_bits_of_one_with_as_many_processes(shard, stage):
    stage.train(DistributedConfig(processes=4, shard=shard), "together")
    stage.trained_on_two("apart", shard, processes=4)
    ours, theirs = stage.weights("apart"), stage.weights("together")
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def kill_in_training(stage, command, number):
    """Send a signal to a node's command as soon as there is a checkpoint."""
    while not list((stage.directory / "checkpoints").glob("step-*")):
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.05)
    command.send_signal(number)


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("node", [0, 1])
def test_all_nodes_end_with_one_that_is_stopped_and_go_on_later(node, number, stage, as_node):
    many = {"num_epochs": 40}
    commands = [stage.command(as_node(each), **many) for each in (0, 1)]
    kill_in_training(stage, commands[node], number)
    said = [command.communicate()[1].strip().splitlines()[-1:] for command in commands]
    assert all(command.returncode != 0 for command in commands)
    assert said[1 - node][0].startswith(f"ProcessError: node {node} was ended with its command"), (
        said
    )
    while living_ranks(stage.directory):  # a killed command's agent looks for it every half second
        time.sleep(0.1)
    trained, _ = stage.train(DistributedConfig(), **many)
    assert trained.num_steps == 3 * many["num_epochs"]
