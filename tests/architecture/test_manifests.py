"""Deployment files that no test runs are at least whole and point at what exists."""

import importlib
import json
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from setuptools import find_packages

from rlhf_core.stages.distributed.launch import ASKED_SECONDS
from rlhf_flows.commands.cli import app
from rlhf_flows.engine.environment import CLIENT_RETRIES, HEARTBEAT_SECONDS
from rlhf_flows.servers.pools import read_pools
from rlhf_flows.servers.servers import LEASES

ROOT = Path(__file__).parents[2]
KUBERNETES = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def label(deployment):
    return f"{deployment['entrypoint'].rpartition(':')[2]}-{deployment['name']}"


def test_a_wheel_installs_nothing_under_a_common_name():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(str(ROOT), **settings["packages"]["find"])
    assert {name.partition(".")[0] for name in packages} == {"rlhf_core", "rlhf_flows"}
    assert {"rlhf_flows.commands", "rlhf_flows.engine", "rlhf_flows.servers"} <= set(packages)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_a_manifest_is_made_of_kubernetes_objects(path):
    objects = [item for item in yaml.safe_load_all(path.read_text()) if item]
    assert objects
    for item in objects:
        assert {"apiVersion", "kind", "metadata"} <= set(item)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_has_its_sections_and_restarts(path):
    text = path.read_text()
    assert all(f"[{section}]" in text for section in ("Unit", "Service", "Install"))
    assert "Restart=always" in text
    assert "EnvironmentFile=/etc/rlhf/rlhf.env" in text


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=label)
def test_a_deployment_names_a_flow_that_exists(deployment):
    file, _, function = deployment["entrypoint"].partition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    assert getattr(module, function).name.startswith("rlhf-")
    assert deployment["description"]


def test_pipelines_wait_for_each_other():
    pipelines = [item for item in DEPLOYMENTS if item["entrypoint"].endswith("rlhf_pipeline")]
    assert {item["name"] for item in pipelines} == {"manual", "nightly", "new-data"}
    for item in pipelines:
        assert item["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert item["work_pool"]["work_queue_name"] == "pipelines"


def test_every_stage_of_the_contract_has_a_deployment():
    stages = {
        item["name"]: item["entrypoint"].rpartition(":")[2]
        for item in DEPLOYMENTS
        if item["entrypoint"].startswith("flows/stages.py")
    }
    assert stages == {
        stage: f"{stage}_stage"
        for stage in ("prepare", "sft", "reward", "policy", "evaluate", "promote")
    }


def variables(name):
    """What a file of ``NAME=VALUE`` lines sets."""
    lines = (ROOT / "deploy/systemd" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")


def test_a_pipeline_never_holds_the_only_place_its_stage_needs():
    pools = read_pools(ROOT / "prefect.yaml")
    unit = (ROOT / "deploy/systemd/rlhf-worker@.service").read_text()
    assert f"Environment=RLHF_WORKER_LIMIT={pools.limits[pools.orchestration]}" in unit
    training = variables(f"{pools.training}.env")
    assert training == {"RLHF_WORKER_LIMIT": str(pools.limits[pools.training])}


def test_what_runs_need_to_outlive_an_outage_is_set_everywhere():
    base = yaml.safe_load_all((ROOT / "deploy/kubernetes/base.yaml").read_text())
    hosts = next(item for item in base if item and item["kind"] == "ConfigMap")["data"]
    for found in (hosts, variables("rlhf.env")):
        assert found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)
        assert found["PREFECT_CLIENT_MAX_RETRIES"] == str(CLIENT_RETRIES)
        assert LEASES.items() <= found.items()


def test_passwords_are_for_the_servers_alone_and_on_no_command_line():
    databases = variables("rlhf-databases.env")
    assert not databases.keys() & variables("rlhf.env").keys()
    for unit in UNITS:
        text = unit.read_text()
        reads = "EnvironmentFile=/etc/rlhf/rlhf-databases.env" in text
        assert reads == (unit.name in ("rlhf-prefect.service", "rlhf-mlflow.service"))
        assert not any(f"${{{name}}}" in text for name in databases)
        assert not reads or "--host ${RLHF_BIND}" in text
    assert variables("rlhf.env")["RLHF_BIND"] == "127.0.0.1"


def test_the_image_leaves_local_state_out_and_keeps_the_versions():
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = (ROOT / ".gitignore").read_text().split()
    for line in (line.strip("/") for line in ignored if line.startswith(("/", "."))):
        if not line.startswith("data/"):
            assert line in left_out, line
    assert {"data/prepared*", ".dvc/config.local"} <= set(left_out)
    assert not {".git", ".dvc", "data", "data/raw", "data/base"} & set(left_out)


def pods():
    """Every pod of the manifests and of the pools' job templates, by where it is written."""
    for path in KUBERNETES:
        for item in filter(None, yaml.safe_load_all(path.read_text())):
            if item["kind"] in ("Deployment", "Job"):
                yield f"{path.name} {item['metadata']['name']}", item["spec"]["template"]["spec"]
            if item["kind"] == "TrainingRuntime":
                (job,) = item["spec"]["template"]["spec"]["replicatedJobs"]
                yield f"{path.name} {job['name']}", job["template"]["spec"]["template"]["spec"]
    for path in sorted((ROOT / "deploy/kubernetes").glob("pool-*.json")):
        job = json.loads(path.read_text())["job_configuration"]["job_manifest"]
        yield path.name, job["spec"]["template"]["spec"]


@pytest.mark.parametrize(("where", "pod"), list(pods()), ids=[where for where, _ in pods()])
def test_no_container_runs_as_root_or_gains_rights(where, pod):
    allowed = pod["securityContext"]
    assert allowed["runAsNonRoot"] is True
    assert allowed["runAsUser"] == allowed["runAsGroup"] == allowed["fsGroup"] == 1000
    assert allowed["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


TRAINER = "kubeflow_trainer_api.models"


def keys(value):
    """Every path of keys in what YAML gives, lists left out."""
    for key, below in value.items() if isinstance(value, dict) else ():
        yield (key,)
        yield from ((key, *rest) for rest in keys(below))
    for below in value if isinstance(value, list) else ():
        yield from keys(below)


def train_job_objects():
    made = yaml.safe_load_all((ROOT / "deploy/kubernetes/trainjob.yaml").read_text())
    return {item["kind"]: item for item in made if item}


@pytest.mark.parametrize("kind", ["TrainJob", "TrainingRuntime"])
def test_a_training_over_several_nodes_is_what_kubeflow_trainer_takes(kind):
    item = train_job_objects()[kind]
    known = getattr(importlib.import_module(TRAINER), f"TrainerV1alpha1{kind}")
    found = known.from_dict(item).to_dict()
    assert set(keys(found)) == set(keys(item)), "the type knows no such field"


def test_a_training_job_runs_the_command_of_a_stage_on_the_runtime_beside_it():
    made = train_job_objects()
    job, runtime = made["TrainJob"]["spec"], made["TrainingRuntime"]
    assert job["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert runtime["spec"]["mlPolicy"]["torch"] == {}
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["template"]["metadata"]["labels"] == {
        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
    }
    pod = node["template"]["spec"]["template"]
    policy = made["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
    training = json.loads((ROOT / "deploy/kubernetes/pool-rlhf-training.json").read_text())
    alone = training["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    for mount in alone["containers"][0]["volumeMounts"]:
        assert mount in mounts, "a node sees the files of a run that is trained in one pod"
    assert pod["spec"]["terminationGracePeriodSeconds"] > 2 * ASKED_SECONDS
    command = [*job["trainer"]["command"], *job["trainer"]["args"]]
    assert command[:2] == ["rlhf", "sft"]
    assert (ROOT / command[2]).is_file()
    sft = typer.main.get_command(app).commands["sft"]
    assert sft.make_context("sft", command[2:]).params["run_id"]


def test_the_image_leaves_root_behind_once_it_is_made():
    lines = (ROOT / "deploy/kubernetes/Dockerfile").read_text().splitlines()
    assert lines[-1] == "USER 1000:1000"
    assert "COPY --chown=1000:1000 . ." in lines


def test_the_servers_of_a_cluster_answer_its_own_pods_alone():
    made = yaml.safe_load_all((ROOT / "deploy/kubernetes/servers.yaml").read_text())
    policies = [item["spec"] for item in made if item and item["kind"] == "NetworkPolicy"]
    nobody, own = policies
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress"]}
    (match,) = own["podSelector"]["matchExpressions"]
    assert (match["key"], set(match["values"])) == ("app", {"prefect", "mlflow"})
    (rule,) = own["ingress"]
    assert rule["from"] == [{"podSelector": {}}]
    assert {port["port"] for port in rule["ports"]} == {4200, 5000}


def test_prefect_is_started_closed_everywhere():
    unit = (ROOT / "deploy/systemd/rlhf-prefect.service").read_text()
    assert "-m rlhf_flows.servers.patched_prefect server start" in unit
    for file in KUBERNETES:
        text = file.read_text()
        assert "[prefect, server" not in text
    servers = (ROOT / "deploy/kubernetes/servers.yaml").read_text()
    assert "[python, -m, rlhf_flows.servers.patched_prefect, server, start" in servers


@pytest.mark.parametrize("name", ["rlhf-prefect.service", "rlhf-mlflow.service"])
def test_what_servers_write_is_their_user_s_alone(name):
    assert "UMask=0077" in (ROOT / "deploy/systemd" / name).read_text()
