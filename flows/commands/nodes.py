"""Which node of a training this command is, and what it does where it is not the first."""

import json
import os
from typing import TYPE_CHECKING

import typer

from rlhf_core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rlhf_core.adapters.settings import Settings
    from rlhf_core.config import GatedStage, PipelineConfig
    from rlhf_flows.engine.runs.settings import RunSettings


def as_started(settings: "RunSettings", role: "GatedStage") -> "RunSettings":
    """Return the settings with what torchrun's variables say of nodes and the settings do not.

    ``PET_NNODES``, ``PET_NPROC_PER_NODE``, ``PET_NODE_RANK``, and ``PET_RDZV_ENDPOINT`` or
    ``PET_MASTER_ADDR`` with ``PET_MASTER_PORT``: Kubeflow Trainer gives them to every pod.

    Raises:
        ConfigError: one of them is no number, or does not go with the settings; or as
            ``require_started_once``.
    """
    from rlhf_core.adapters.settings import load_settings

    said = load_settings()
    config = settings.config
    section, given = _section(config, role)
    found: dict[str, str] = {}
    if said.pet_nnodes is not None:
        found["nnodes"] = str(_number("PET_NNODES", said.pet_nnodes))
    if said.pet_node_rank is not None:
        found["node_rank"] = str(_number("PET_NODE_RANK", said.pet_node_rank))
    if said.pet_rdzv_endpoint is not None:
        found["rdzv_endpoint"] = json.dumps(said.pet_rdzv_endpoint)
    elif said.pet_master_addr is not None and said.pet_master_port is not None:
        port = _number("PET_MASTER_PORT", said.pet_master_port)
        found["rdzv_endpoint"] = json.dumps(f"{said.pet_master_addr}:{port}")
    found = {name: value for name, value in found.items() if name not in given}
    nodes = int(found.get("nnodes", config.distributed_of(role).nnodes))
    require_started_once(nodes)
    if said.pet_nproc_per_node is not None and "processes" not in given:
        found["processes"] = str(nodes * _processes_here(said.pet_nproc_per_node, config))
    if not found:
        return settings
    changes = tuple(f"{section}.{name}={value}" for name, value in found.items())
    # No copy: that would keep the settings as they were read.
    given_as = {name: getattr(settings, name) for name in type(settings).model_fields}
    return type(settings)(**{**given_as, "overrides": (*settings.overrides, *changes)})


def follow(config: "PipelineConfig", role: "GatedStage", run_id: str | None) -> None:
    """Where this is not node 0, run its processes for that one's stage, and leave the command."""
    if config.distributed_of(role).node_rank == 0:
        return
    from rlhf_core.stages.distributed.launch import follow_node_0
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.engine.runs.folder import locate_run

    run: Path | None = None
    if run_id is not None:
        run = locate_run(run_id, config.runs).directory
    trained = follow_node_0(config, role, run)
    node = config.distributed_of(role).node_rank
    if trained is None:
        show_line(f"node {node}: {role} was finished before; node 0 goes on with it")
        raise typer.Exit(0)
    show_line(
        f"node {node}: {role} is trained, {trained.num_steps} steps, sha256 {trained.sha256[:12]}; "
        "node 0 goes on with it"
    )
    raise typer.Exit(0)


def require_started_once(nodes: int = 1) -> None:
    """Refuse to be one of several copies of a command that a launcher started in place of one.

    Args:
        nodes: on each of which the command is meant to be started.

    Raises:
        ConfigError: says what to start instead.
    """
    from rlhf_core.adapters.settings import load_settings

    copies = _copies(load_settings(), nodes)
    if copies is None:
        return
    launcher, number, on_several, variable = copies
    apart = variable and f"; copies that are to be runs of their own are started without {variable}"
    more = " and its nnodes, node_rank and rdzv_endpoint on each node" if on_several else ""
    raise ConfigError(
        f"{launcher} started this command {number} times, and each would do all of it, a training "
        f"make a model of its own: start it once, without {launcher}; a training starts its "
        f"processes itself, with --set distributed.processes={number}{more}{apart}"
    )


def _copies(said: "Settings", nodes: int) -> tuple[str, str, bool, str] | None:
    """Return launcher, number, whether on several machines, and the variable of unwanted copies.

    Launchers start one another: an mpirun in the one shell that srun started makes copies.
    """
    here, on_nodes = said.local_world_size or "1", said.slurm_step_num_nodes
    launchers: list[tuple[str, str | None, str | None, str]] = [
        ("srun", said.slurm_step_num_tasks, on_nodes, "SLURM_STEP_NUM_TASKS"),
        ("mpirun", said.ompi_comm_world_size, None, "OMPI_COMM_WORLD_SIZE"),
        ("MPI", said.pmi_size, None, "PMI_SIZE"),
    ]
    if said.torchelastic_run_id is not None:
        everywhere = said.world_size or here
        several = everywhere if here == "1" else "several"
        where = "1" if here == everywhere else several
        launchers.insert(0, ("torchrun", everywhere, where, ""))
    for launcher, copies, machines, variable in launchers:
        one_each = copies == str(nodes) and machines in (None, copies)
        if copies is not None and copies != "1" and not one_each:
            return launcher, copies, machines not in (None, "1"), variable
    return None


def _section(config: "PipelineConfig", role: "GatedStage") -> tuple[str, set[str]]:
    """Return the section that says how a stage is distributed, and which settings it gives."""
    from rlhf_core.config.stages import section_of

    owner = section_of(role, config)
    own = getattr(config, owner).distributed
    if own is not None:
        return f"{owner}.distributed", own.model_fields_set
    return "distributed", config.distributed.model_fields_set


def _processes_here(said: str, config: "PipelineConfig") -> int:
    """Return a number of processes; ``auto`` and ``gpu`` are one a GPU, ``cpu`` one a core."""
    if said not in ("auto", "gpu", "cpu"):
        return _number("PET_NPROC_PER_NODE", said)
    import torch

    from rlhf_core.models import choose_device

    on_gpu = choose_device(config.model.device).type == "cuda"
    if said == "gpu" and not on_gpu:
        raise ConfigError("PET_NPROC_PER_NODE is gpu, and this machine has none that is used")
    return torch.cuda.device_count() if on_gpu and said != "cpu" else os.cpu_count() or 1


def _number(name: str, said: str) -> int:
    if not (said.isascii() and said.isdecimal()):
        raise ConfigError(f"{name} is {said!r}: expected a number")
    return int(said)
