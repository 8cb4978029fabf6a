"""The Kubernetes pools have job templates that Prefect and its Kubernetes worker take."""

import json
from pathlib import Path

import pytest
import yaml
from jsonpatch import JsonPatch
from prefect.server.schemas.actions import WorkPoolUpdate
from prefect.utilities.templating import apply_values

from rlhf_flows.servers.pools import read_pools

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
POOLS = read_pools(ROOT / "prefect.yaml")

WORKER = "prefect-kubernetes==0.8.0"
REQUIRED = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"annotations": {}, "labels": {}},
    "spec": {
        "template": {
            "spec": {
                "parallelism": 1,
                "completions": 1,
                "restartPolicy": "Never",
                "containers": [{"name": "prefect-job"}],
            }
        }
    },
}
"""What a job must hold: ``_get_base_job_manifest``, ``prefect_kubernetes/worker.py`` of WORKER."""


def template_of(pool):
    return json.loads((FOLDER / f"pool-{pool}.json").read_text())


def job_of(template):
    """The job that the template's defaults give; labels and annotations come with a flow run."""
    properties = template["variables"]["properties"]
    values = {name: each["default"] for name, each in properties.items() if "default" in each}
    values |= {"labels": {}, "annotations": {}}
    return apply_values(template["job_configuration"], values)["job_manifest"]


def objects(file):
    return [item for item in yaml.safe_load_all((FOLDER / file).read_text()) if item]


@pytest.mark.parametrize("pool", POOLS.limits)
def test_every_variable_of_a_template_is_declared(pool):
    # The server's own rule: it refuses a template with a variable it does not know.
    WorkPoolUpdate(base_job_template=template_of(pool))


@pytest.mark.parametrize("pool", POOLS.limits)
def test_every_variable_that_is_declared_is_used(pool):
    template = template_of(pool)
    text = json.dumps(template["job_configuration"])
    assert all(f"{{{{ {name} }}}}" in text for name in template["variables"]["properties"])


@pytest.mark.parametrize("pool", POOLS.limits)
def test_the_worker_takes_the_job(pool):
    # As KubernetesWorkerJobConfiguration._validate_job_manifest does: nothing to add or replace.
    patch = JsonPatch.from_diff(job_of(template_of(pool)), REQUIRED)
    assert [step for step in patch if step["op"] in ("add", "replace")] == []
    assert WORKER in (FOLDER / "Dockerfile").read_text()


def test_only_training_asks_for_a_gpu():
    plain, training = template_of(POOLS.orchestration), template_of(POOLS.training)
    pod = training["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"].pop("nvidia.com/gpu") == 1
    assert training == plain


def test_a_job_is_made_where_the_worker_may_make_it_from_the_image_that_is_there():
    job = job_of(template_of(POOLS.training))
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["namespace"] == "rlhf"
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["image"] == "rlhf:latest"
        assert container["imagePullPolicy"] == "IfNotPresent"
    claims = {item["metadata"]["name"] for item in objects("base.yaml")}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] in claims
    assert pod["containers"][0]["envFrom"][0]["configMapRef"]["name"] in claims


def test_what_stages_hand_on_is_mounted_and_no_directory_that_is_replaced():
    container = job_of(template_of(POOLS.training))["spec"]["template"]["spec"]["containers"][0]
    shared = {
        mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared"
    }
    assert shared == {"/shared", "/app/runs", "/app/data", "/app/.rlhf/data"}
    settings = next(item for item in objects("base.yaml") if item["kind"] == "ConfigMap")["data"]
    assert settings["PREFECT_LOCAL_STORAGE_PATH"].startswith("/shared/")


def test_a_worker_watches_its_own_namespace_only():
    workers = [item for item in objects("workers.yaml") if item["kind"] == "Deployment"]
    assert len(workers) == len(POOLS.limits)
    for worker in workers:
        container = worker["spec"]["template"]["spec"]["containers"][0]
        assert {
            "name": "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES",
            "value": worker["metadata"]["namespace"],
        } in container["env"]
        assert container["command"][-1] in POOLS.limits


def test_the_deploy_job_gives_every_pool_its_template():
    (job,) = objects("deploy-job.yaml")
    script = job["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    assert f"for pool in {' '.join(POOLS.limits)}; do" in script
    assert "prefect work-pool update $pool --base-job-template" in script
