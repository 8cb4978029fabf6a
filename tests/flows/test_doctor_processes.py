"""What `rlhf doctor` says of a training in several processes: cores, memory, network, nodes."""

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml

from rlhf_core.models import memory
from rlhf_core.stages.distributed import network
from rlhf_flows.commands.doctor_processes import check_processes

BASE = str(Path(__file__).parents[2] / "data" / "base")
ALL = "sft, reward, judge, policy"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Four cores, and nothing that a person or torchrun has set."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "PET_NNODES", "PET_NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def looked(tmp_path):
    """Look at settings of this `distributed` section; findings by what they are of."""

    def look(distributed, **sections):
        given = {
            "model": {"base": BASE},
            "data": {"preferences": {"path": "raw.jsonl"}},
            "policy": {"algorithm": "dpo"},
            "gates": {
                "sft": [{"metric": "sft/heldout_nll", "at_most": 2.0}],
                "reward": [{"metric": "reward/heldout_accuracy", "at_least": 0.6}],
                "policy": [{"metric": "policy/win_rate", "at_least": 0.55}],
            },
            "distributed": distributed,
            **sections,
        }
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(given))
        return {finding.what: finding for finding in check_processes(path)}

    return look


@pytest.fixture
def endpoint():
    """A free port to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def nodes(endpoint, node_rank=0, **changes):
    given = {"processes": 2, "nnodes": 2, "node_rank": node_rank, "rdzv_endpoint": endpoint}
    return {**given, **changes}


def test_one_process_asks_for_nothing(looked):
    assert looked({"processes": 1}) == {}


def test_settings_that_cannot_be_read_are_reported_elsewhere(tmp_path):
    assert list(check_processes(tmp_path / "missing.yaml")) == []
    assert list(check_processes(None)) == []


def test_processes_cores_memory_and_gloo_are_a_line_each(looked):
    found = looked({"processes": 2, "shard": "layers"})
    memories = {f"memory ({stage})" for stage in ("sft", "reward", "judge", "policy")}
    assert set(found) == {f"processes ({ALL})", f"gloo ({ALL})", *memories}
    assert all(finding.healthy for finding in found.values())
    line = found[f"processes ({ALL})"].found
    assert line == "2 here, shard layers, 2 threads each, 4 cores"
    assert "in each of 2 processes" in found["memory (sft)"].found
    assert "are free" in found["memory (policy)"].found


def test_stages_that_differ_are_told_apart(looked):
    found = looked({"processes": 1}, sft={"distributed": {"processes": 4}})
    assert found["processes (sft)"].found == "4 here, shard none, 1 threads each, 4 cores"
    assert {"processes (sft)", "memory (sft)", "gloo (sft)"} == set(found)


@pytest.mark.parametrize(("processes", "threads"), [(8, None), (4, "2")])
def test_more_threads_than_cores_are_named(processes, threads, looked, monkeypatch):
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    said = looked({"processes": processes})[f"processes ({ALL})"]
    assert not said.healthy
    assert f"{processes} here" in said.found
    assert "4 cores" in said.found
    assert "at most 4 processes" in said.fix


def test_memory_that_is_not_there_for_all_of_them_is_named(looked, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 30_000_000)
    found = looked({"processes": 2})["memory (sft)"]
    assert not found.healthy
    assert "training sft in 2 processes needs" in found.found
    assert "shard: layers" in found.fix


def test_gpus_that_are_not_there_are_named(looked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 80 << 30))
    model = {"base": BASE, "device": "cuda"}
    said = looked({"processes": 2}, model=model)[f"processes ({ALL})"]
    assert not said.healthy
    assert "this machine has 1 GPUs" in said.found
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = looked({"processes": 2}, model=model)[f"processes ({ALL})"]
    assert said.healthy
    assert said.found == "2 here, shard none, a GPU each of 2"


def test_torchrun_s_variables_count_as_they_do_for_the_commands(looked, monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("PET_NPROC_PER_NODE", "2")
    said = looked({})[f"processes ({ALL})"]
    assert not said.healthy
    assert "give distributed.rdzv_endpoint" in said.found
    monkeypatch.setenv("PET_NNODES", "many")
    assert "PET_NNODES is 'many'" in looked({})["processes"].found


def listens_at(port):
    return any(
        one.laddr.port == port and one.status == psutil.CONN_LISTEN
        for one in psutil.Process().net_connections("tcp")
    )


def test_an_endpoint_that_node_0_can_have_is_healthy_and_stays_free(looked, endpoint):
    found = looked(nodes(endpoint))
    said = found[f"endpoint ({ALL})"]
    assert said.healthy
    assert said.found.endswith("of this machine, and its port is free")
    assert found[f"processes ({ALL})"].found.startswith("2 on 2 nodes, 1 here")
    assert not listens_at(int(endpoint.split(":")[1]))


def test_another_node_says_whether_node_0_is_there(looked, endpoint):
    told = f"endpoint ({ALL})"
    said = looked(nodes(endpoint, 1))[told]
    assert said.healthy
    assert "node 0 does not listen there now" in said.found
    host, port = endpoint.split(":")
    with socket.create_server((host, int(port))):
        assert "listens there, as node 0 does" in looked(nodes(endpoint, 1))[told].found
        taken = looked(nodes(endpoint))[told]
    assert not taken.healthy
    assert "another program listens there" in taken.found


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("192.0.2.1:29400", "is no address of this machine, and this is node 0"),
        ("no-such-host.invalid:29400", "distributed.rdzv_endpoint no-such-host.invalid:29400: "),
    ],
)
def test_an_endpoint_that_cannot_be_is_named(endpoint, says, looked):
    said = looked(nodes(endpoint))[f"endpoint ({ALL})"]
    assert not said.healthy
    assert says in said.found


@pytest.mark.parametrize("loopback", [True, False])
def test_nodes_that_would_listen_to_themselves_alone_are_named(loopback, looked, monkeypatch):
    """Debian gives a machine's own name 127.0.1.1, and gloo listens where that name leads."""
    address = "127.0.1.1" if loopback else "10.0.0.3"
    monkeypatch.setattr(network, "gloo_addresses", lambda interfaces: (address,))
    monkeypatch.setattr(network, "reachable_interfaces", lambda: {"eth7": "10.0.0.3"})
    said = looked(nodes("10.255.0.1:29400"))[f"gloo ({ALL})"]
    assert said.healthy is not loopback
    assert address in said.found
    if loopback:
        assert "GLOO_SOCKET_IFNAME" in said.fix
        assert "eth7 (10.0.0.3)" in said.fix


def test_an_interface_that_is_not_there_is_named(looked, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    said = looked({"processes": 2})[f"gloo ({ALL})"]
    assert not said.healthy
    assert "no interface nowhere0 with an address here; there are " in said.found


def test_the_interface_that_is_named_is_where_gloo_listens(looked, monkeypatch):
    name = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(one.address == "127.0.0.1" for one in addresses)
    )
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", name)
    said = looked({"processes": 2})[f"gloo ({ALL})"]
    assert said.healthy
    assert "listen on 127.0.0.1, by GLOO_SOCKET_IFNAME, which other machines do not reach" in (
        said.found
    )


def test_interfaces_that_lead_nowhere_are_not_offered(monkeypatch):
    ipv4 = SimpleNamespace(family=socket.AF_INET, address="10.0.0.3")
    own = SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")
    found = {"lo": [own], "eth7": [ipv4], "down0": [ipv4]}
    up = {name: SimpleNamespace(isup=name != "down0") for name in found}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: up)
    assert network.reachable_interfaces() == {"eth7": "10.0.0.3"}
