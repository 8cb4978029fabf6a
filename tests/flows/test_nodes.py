"""What torchrun's variables say of a node, where the settings say nothing."""

import pytest
from typer.testing import CliRunner

from rlhf_core.errors import ConfigError
from rlhf_flows.commands.cli import app
from rlhf_flows.commands.nodes import as_started
from rlhf_flows.engine.runs.settings import RunSettings
from tests.config.test_load import MINIMAL

POD = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29500",
}
"""What Kubeflow Trainer gives a pod."""


@pytest.fixture
def started(tmp_path, monkeypatch):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)

    def start(role="sft", overrides=(), **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings = RunSettings(file=path, overrides=overrides)
        return as_started(settings, role).config.distributed_of(role)

    return start


@pytest.mark.parametrize("role", ["sft", "reward", "judge", "policy"])
def test_a_pod_of_a_training_job_knows_its_place(role, started):
    found = started(role, **POD)
    assert (found.processes, found.nnodes, found.node_rank) == (8, 2, 1)
    assert found.rdzv_endpoint == "job-node-0-0.job:29500"


def test_what_the_settings_say_wins_and_the_rest_is_the_pod_s(started):
    own = ("policy.distributed.processes=4", "policy.distributed.shard=layers")
    found = started("policy", own, **POD)
    assert (found.processes, found.nnodes, found.shard) == (4, 2, "layers")
    assert started("sft", own, **POD).processes == 8


def test_without_variables_nothing_changes(started):
    assert started().model_fields_set == set()


def test_one_pod_alone_trains_with_its_processes(started):
    found = started(PET_NNODES="1", PET_NPROC_PER_NODE="2", PET_NODE_RANK="0")
    assert (found.processes, found.nnodes) == (2, 1)


def test_a_command_that_torchrun_started_twice_is_refused_and_told_how(started):
    """Each trained a model and registered it: two versions of one training, exit status 0."""
    twice = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "RANK": "1"}
    with pytest.raises(ConfigError, match=r"started this command 2 times.*processes=2$"):
        started(**twice)
    assert started(**twice | {"LOCAL_WORLD_SIZE": "1"}).processes == 1


def test_two_nodes_that_torchrun_started_are_refused_where_the_settings_know_of_one(started):
    once_each = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}
    with pytest.raises(ConfigError, match=r"2 times.*processes=2 and its nnodes, node_rank and"):
        started(**once_each)
    with pytest.raises(ConfigError, match=r"4 times.*processes=4 and its nnodes, node_rank and"):
        started(**once_each | {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"})
    assert started(**once_each, **POD).nnodes == 2


TWICE = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"},
    "srun": {"SLURM_STEP_NUM_TASKS": "2"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2"},
    "MPI": {"PMI_SIZE": "2"},
}


@pytest.mark.parametrize("launcher", TWICE)
@pytest.mark.parametrize("command", ["run", "rounds", "prepare", "sft", "evaluate", "collect"])
def test_a_command_that_a_launcher_started_twice_is_refused(command, launcher, tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    found = CliRunner().invoke(app, [command, str(path)], env=TWICE[launcher])
    assert f"{launcher} started this command 2 times" in str(found.exception)


def test_one_copy_on_each_node_is_a_training_and_a_batch_job_s_tasks_are_no_copies(started):
    on_each = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    assert started(SLURM_NTASKS="8", SLURM_PROCID="0").nnodes == 1
    with pytest.raises(ConfigError, match=r"and its nnodes, node_rank and.*without SLURM_STEP_NUM"):
        started(**on_each)
    assert started(**on_each, **POD).nnodes == 2


@pytest.mark.parametrize(
    "both_here",
    [
        {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"},
    ],
)
def test_as_many_copies_as_nodes_on_one_of_them_are_refused(started, both_here):
    with pytest.raises(ConfigError, match="started this command 2 times"):
        started(**both_here, **POD)


@pytest.mark.parametrize(
    "outer",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "1"},
    ],
)
def test_a_launcher_within_one_copy_of_another_is_seen(started, outer):
    with pytest.raises(ConfigError, match="mpirun started this command 4 times"):
        started(**outer, OMPI_COMM_WORLD_SIZE="4")


def test_torchrun_s_own_endpoint_is_taken_first(started):
    assert started(**POD, PET_RDZV_ENDPOINT="[fe80::1]:1234").rdzv_endpoint == "[fe80::1]:1234"


@pytest.mark.parametrize("said", ["auto", "cpu"])
def test_a_process_a_core_where_there_is_no_gpu(said, started, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert started(PET_NPROC_PER_NODE=said).processes == 3


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PET_NNODES": "1:4"}, "PET_NNODES is '1:4': expected a number"),
        ({"PET_NPROC_PER_NODE": "xpu"}, "PET_NPROC_PER_NODE is 'xpu': expected a number"),
        ({"PET_NPROC_PER_NODE": "gpu"}, "PET_NPROC_PER_NODE is gpu, and this machine has none"),
        ({"PET_NNODES": "2"}, "distributed.processes is 1, of all nodes together"),
        ({"PET_NODE_RANK": "2"}, "distributed.node_rank is 2, but nodes count from 0 to 0"),
    ],
)
def test_variables_that_cannot_be_are_one_line(variables, says, started):
    with pytest.raises(ConfigError, match=says):
        started(**variables)
