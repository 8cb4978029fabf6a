from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule

from rlhf_core.errors import ConfigError
from rlhf_flows.engine.environment import RELIED_ON
from rlhf_flows.servers.deploy import _as_people_left_it
from rlhf_flows.servers.installation import STEP, installed_code, module_entrypoint

ROOT = Path(__file__).parents[2]


def made_from(schedule, slug="nightly", active=True):
    cron = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    return DeploymentSchedule(schedule=cron, slug=slug, active=active)


@pytest.fixture
def server():
    """A server with everything deployed, as its client sees it."""
    shipped = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    made = [
        SimpleNamespace(
            id=uuid4(),
            entrypoint=one["entrypoint"],
            name=one["name"],
            paused=False,
            parameters=one.get("parameters") or {},
            schedules=[made_from(schedule) for schedule in one.get("schedules", ())],
        )
        for one in shipped
    ]
    automations, requests = {}, []
    return SimpleNamespace(
        made=made,
        automations=automations,
        named=lambda name: next(one for one in made if one.name == name),
        requests=requests,
        request=lambda *asked, **how: requests.append(how),
        read_deployments=lambda deployment_filter: made,
        read_resource_related_automations=lambda resource: automations.get(resource, []),
    )


@pytest.fixture
def applied(server, monkeypatch):
    """Return the deployments of the file that is applied, by name."""
    monkeypatch.chdir(ROOT)

    def read():
        with _as_people_left_it(server) as file:
            found = yaml.safe_load(file.read_text())["deployments"]
        return {one["name"]: one for one in found}

    return read


def test_a_new_schedule_is_never_on_and_a_later_deploy_says_nothing_about_it(server, applied):
    """Switched off afterwards, it would be on for good where somebody was killed in between."""
    assert "schedules" not in applied()["nightly"]
    server.made.clear()
    assert applied()["nightly"]["schedules"][0]["active"] is False


def test_what_people_paused_or_switched_off_is_applied_as_they_left_it(server, applied):
    new_data = server.named("new-data")
    assert applied()["new-data"]["paused"] is False
    assert applied()["new-data"]["triggers"][0]["enabled"] is True
    new_data.paused = True
    switched_off = SimpleNamespace(name="new-data__automation_1", enabled=False)
    server.automations[f"prefect.deployment.{new_data.id}"] = [switched_off]  # of an earlier build
    assert applied()["new-data"]["paused"] is True
    assert applied()["new-data"]["triggers"][0]["enabled"] is False
    assert applied()["manual"]["paused"] is False
    switched_off.name = applied()["new-data"]["triggers"][0]["name"]
    assert switched_off.name == "rlhf: a new dataset version starts the pipeline"
    assert applied()["new-data"]["triggers"][0]["enabled"] is False


def test_a_deployment_runs_by_whatever_installation_has_its_code(server, applied):
    """It names modules, no folder, and begins where its worker is, if the code is the same."""
    for deployment in applied().values():
        assert deployment["entrypoint"].startswith("rlhf_flows.")
        assert str(ROOT) not in yaml.safe_dump({**deployment, "pull": None})
        (step,) = deployment["pull"]
        assert step[STEP]["code"] == installed_code()


def test_a_deployment_carries_what_its_runs_rely_on_whoever_starts_the_worker(server, applied):
    for deployment in applied().values():
        assert deployment["work_pool"]["job_variables"]["env"].items() >= RELIED_ON.items()
    assert applied()["nightly"]["work_pool"]["work_queue_name"] == "pipelines"


def test_what_was_deployed_by_file_is_known_by_module(server, applied):
    """An older deployment keeps its switches when it is applied again."""
    nightly = server.named("nightly")
    assert ":" in nightly.entrypoint
    nightly.paused = True
    assert applied()["nightly"]["paused"] is True
    nightly.entrypoint = module_entrypoint(nightly.entrypoint)
    assert applied()["nightly"]["paused"] is True


def test_schedules_that_people_set_are_left_alone(server, applied, caplog):
    """What is not mentioned, Prefect leaves alone, if all of a deployment's have a slug."""
    nightly = server.named("nightly")
    mine = {"cron": "30 4 * * 1", "timezone": "Europe/Berlin"}
    nightly.schedules = [made_from(mine), made_from(mine, slug=None, active=False)]
    with caplog.at_level("INFO"):
        assert "schedules" not in applied()["nightly"]
    added = nightly.schedules[1]
    (asked,) = server.requests
    assert asked["path_params"] == {"id": nightly.id, "schedule_id": added.id}
    assert asked["json"] == {"slug": f"schedule-{str(added.id)[:8]}"}
    assert caplog.text.count("'cron': '30 4 * * 1'") == 2, "both differ from the file"


def test_parameters_that_people_set_are_applied_as_they_are(server, applied):
    nightly = server.named("nightly")
    nightly.parameters = {"settings": {"file": "mine.yaml"}}
    assert applied()["nightly"]["parameters"] == nightly.parameters


def test_a_schedule_of_the_file_that_the_server_lacks_is_added_switched_off(server, applied):
    nightly = server.named("nightly")
    nightly.schedules = [made_from({"cron": "0 5 * * *", "timezone": "UTC"}, slug="mine")]
    (added,) = applied()["nightly"]["schedules"]
    assert (added["slug"], added["active"]) == ("nightly", False)


def test_a_schedule_of_the_file_without_a_slug_is_refused(applied, tmp_path, monkeypatch):
    content = (ROOT / "prefect.yaml").read_text().replace("{slug: nightly, cron", "{cron")
    (tmp_path / "prefect.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"nightly: schedules\[0\]: expected a slug"):
        applied()


def test_every_deployment_has_a_name_of_its_own(server, applied):
    names = [one.name for one in server.made]
    assert sorted(applied()) == sorted(set(names)) == sorted(names)


def test_what_an_earlier_build_called_otherwise_stays_in_force_beside_the_new_name(server, applied):
    """Its schedules and automations of people would go with it, or run code that is not there."""
    sft = server.named("sft")
    sft.name, sft.paused = "stage", True
    sft.parameters = {"settings": {"file": "mine.yaml"}}
    sft.schedules = [made_from({"cron": "30 4 * * 1", "timezone": "UTC"}, slug="mine")]
    found = applied()
    old, new = found["stage"], found["sft"]
    assert old["entrypoint"] == new["entrypoint"] == "rlhf_flows.stages.sft_stage"
    assert old["description"].startswith("Now called sft")
    assert "schedules" not in old, "what is not mentioned, Prefect leaves alone"
    for one in (old, new):
        assert (one["paused"], one["parameters"]) == (True, sft.parameters)
    server.made.append(made := SimpleNamespace(**vars(sft) | {"name": "sft", "paused": False}))
    made.schedules = []
    found = applied()
    assert (found["stage"]["paused"], found["sft"]["paused"]) == (True, False)
    server.made.remove(sft)
    assert "stage" not in applied(), "what a person deleted does not come back"
