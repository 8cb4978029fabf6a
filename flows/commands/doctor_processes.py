"""The part of `rlhf doctor` that looks at what several processes of a training need."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.errors import RlhfError
from rlhf_flows.commands.findings import Finding
from rlhf_flows.commands.nodes import as_started
from rlhf_flows.engine.runs.settings import RunSettings

if TYPE_CHECKING:
    from rlhf_core.config import DistributedConfig, GatedStage, PipelineConfig

SEE = "see docs/scaling.md"


def check_processes(config: Path | None) -> Iterator[Finding]:
    """Look at places, memory and network of each stage that trains with several processes.

    Nodes are counted as the commands of stages count them, with torchrun's variables.
    """
    from rlhf_core.config import GATED_STAGES, load_config

    usable = False
    with suppress(RlhfError):  # bad settings are reported elsewhere
        usable = config is not None and load_config(config) is not None
    if config is None or not usable:
        return
    settings = RunSettings(file=config)
    try:
        started = {stage: as_started(settings, stage).config for stage in GATED_STAGES}
    except RlhfError as error:  # torchrun's variables do not go with them
        yield Finding(what="processes", healthy=False, found=str(error), fix=SEE)
        return
    yield from _look(started)


def _look(started: Mapping["GatedStage", "PipelineConfig"]) -> Iterator[Finding]:
    """Look at each stage with the settings it is started with; those that are alike, together."""
    alike: dict[DistributedConfig, list[GatedStage]] = {}
    for stage, config in started.items():
        alike.setdefault(config.distributed_of(stage), []).append(stage)
    for distributed, stages in alike.items():
        if distributed.processes == 1:
            continue
        named = ", ".join(stages)
        yield _placed(distributed, started[stages[0]].model.device, named)
        for stage in stages:
            yield from _memory(started[stage], stage)
        if distributed.nnodes > 1 and distributed.rdzv_endpoint is not None:
            yield _endpoint(distributed, named)
        yield _gloo(distributed, named)


def _placed(distributed: "DistributedConfig", device: str, stages: str) -> Finding:
    """Say how many processes there are on this machine, and for how many it has cores or GPUs."""
    import joblib
    import torch

    from rlhf_core.adapters.settings import load_settings
    from rlhf_core.models import choose_device
    from rlhf_core.stages.distributed.launch import require_place, threads_each

    what, here = f"processes ({stages})", distributed.processes_of_a_node
    try:
        require_place(distributed, device)
        place = choose_device(device)
    except RlhfError as error:
        return Finding(what=what, healthy=False, found=str(error), fix=SEE)
    found = f"{here} here, shard {distributed.shard}"
    if distributed.nnodes > 1:
        found = f"{distributed.processes} on {distributed.nnodes} nodes, {found}"
    if place.type == "cuda":
        found += f", a GPU each of {torch.cuda.device_count()}"
        return Finding(what=what, healthy=True, found=found)
    cores, said = int(joblib.cpu_count()), load_settings().omp_num_threads
    threads = int(said) if said and said.isdecimal() else threads_each(distributed)
    by = f"OMP_NUM_THREADS={said}" if said else f"{threads} threads"
    return Finding(
        what=what,
        healthy=here * threads <= cores,
        found=f"{found}, {by} each, {cores} cores",
        fix=f"take at most {cores} processes on this machine, and unset OMP_NUM_THREADS or set it "
        "to the cores of each: threads that share a core wait for each other",
    )


def _memory(config: "PipelineConfig", stage: "GatedStage") -> Iterator[Finding]:
    from rlhf_core.stages.training.memory import memory_ahead

    what = f"memory ({stage})"
    try:
        found = memory_ahead(config, stage)
    except RlhfError as error:
        fix = "take fewer processes, shard: layers or compute.lora; docs/scaling.md has a table"
        yield Finding(what=what, healthy=False, found=str(error), fix=fix)
        return
    if found:
        yield Finding(what=what, healthy=True, found=found)


def _endpoint(distributed: "DistributedConfig", stages: str) -> Finding:
    """Say where the nodes meet, and whether that can be had, or reached, from here."""
    from rlhf_core.stages.distributed.network import endpoint_seen

    what = f"endpoint ({stages})"
    try:
        return Finding(what=what, healthy=True, found=endpoint_seen(distributed))
    except RlhfError as error:
        fix = "name node 0 as the other nodes reach it, with a port that nothing else has there"
        return Finding(what=what, healthy=False, found=str(error), fix=fix)


def _gloo(distributed: "DistributedConfig", stages: str) -> Finding:
    """Say where processes listen for each other, and whether those of other nodes get there."""
    from rlhf_core.adapters.settings import load_settings
    from rlhf_core.stages.distributed import network
    from rlhf_core.stages.distributed.nodes import is_loopback

    what, interfaces = f"gloo ({stages})", load_settings().gloo_socket_ifname
    reachable = network.reachable_interfaces()
    others = ", ".join(f"{name} ({address})" for name, address in reachable.items()) or "none"
    try:
        addresses = network.gloo_addresses(interfaces)
    except RlhfError as error:
        fix = f"unset GLOO_SOCKET_IFNAME, or name an interface: {others}"
        return Finding(what=what, healthy=False, found=str(error), fix=fix)
    here_alone = all(map(is_loopback, addresses))
    by = "GLOO_SOCKET_IFNAME" if interfaces else "this machine's own name"
    return Finding(
        what=what,
        healthy=not here_alone or network.all_nodes_here(distributed),
        found=f"processes listen on {', '.join(addresses)}, by {by}"
        + (", which other machines do not reach" if here_alone else ""),
        fix=f"set GLOO_SOCKET_IFNAME to the interface that leads to the other nodes: {others}",
    )
