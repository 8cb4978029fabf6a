"""What people do in the Prefect UI, against a real server with real workers."""

import os
import signal
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from operator import itemgetter
from uuid import uuid4

import psutil
import pytest
import requests

from rlhf_flows.commands.doctor_servers import check_prefect, check_supervisor
from rlhf_flows.servers.servers import Servers
from tests.flows.served import SETTINGS, until
from tests.flows.test_notifications import Receiver, listening
from tests.flows.test_own_pages import check_closed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]

ENDED = {
    "rlhf-pipeline": {"type": "FAILED", "message": "lost its worker"},
    "rlhf-rounds": {"type": "FAILED", "name": "TimedOut", "message": "nobody answered"},
    "rlhf-collect": {
        "type": "COMPLETED",
        "name": "WAITING",
        "message": "people label at http://labels",
    },
}
"""A run of each flow that ended so that somebody has to look."""


def test_retry_of_a_failed_pipeline_repeats_only_what_failed_and_follows(served, approved):
    run = served.run(approved)
    own = [item for item in served.runs("rlhf-sft") if run["name"].split()[1] in item["name"]]
    assert len(own) == 1
    policies = served.runs("rlhf-policy")
    assert [item["state"]["type"] for item in policies] == ["FAILED", "COMPLETED"]


def test_the_person_who_is_asked_sees_gates_and_the_report(served, approved):
    state = served.run(approved)["state"]
    keys = state["state_details"]["run_input_keyset"]
    page = served.get(f"flow_runs/{approved}/input/{keys['description']}")
    assert "evaluate/quality" in page
    assert "[report](http://mlflow/r/report.html)" in page
    assert "the verdict is HOLD" in page


def test_training_runs_in_the_pool_the_configuration_names(served, approved):
    pools = {flow: served.runs(flow)[0]["work_pool_name"] for flow in ("rlhf-sft", "rlhf-prepare")}
    assert pools == {"rlhf-sft": "gpu", "rlhf-prepare": "rlhf"}


def test_the_doctor_finds_everything_up(served, monkeypatch):
    monkeypatch.chdir(served.path)
    monkeypatch.setenv("PREFECT_API_URL", served.api)
    findings = [*check_supervisor(), *check_prefect()]
    assert [finding for finding in findings if not finding.healthy] == []
    assert {"pool gpu", "process worker-gpu", "deployments"} <= {item.what for item in findings}


def test_a_stranger_s_page_reaches_nothing_and_the_servers_own_brings_its_token(served):
    check_closed(served.servers.prefect_url)
    told = requests.get(f"{served.servers.prefect_url}/ui-settings", timeout=60).json()
    assert told["csrf_enabled"] is True


def test_a_run_that_waits_for_a_person_holds_no_process(served, approved):
    process = served.process_of(approved)
    until(lambda: not psutil.pid_exists(process), f"the end of process {process}")


def test_an_approved_model_is_promoted_with_the_answer_recorded(served, approved):
    served.resume(approved, decision="PROMOTE", reviewer="the reviewer", comment="reads well")
    assert served.wait(approved)["state"]["name"] == "Completed"
    assert served.calls() == ["promote"]
    assert '"reviewer": "the reviewer"' in (served.path / "approval.json").read_text()
    (deadline,) = served.runs("rlhf-approval-deadline")
    assert deadline["state"]["type"] == "CANCELLED"


def test_people_see_the_loss_progress_results_and_links(served, approved):
    (sft, *_) = served.runs("rlhf-sft")
    wanted = {"logs": {"flow_run_id": {"any_": [sft["id"]]}}}
    until(
        lambda: "loss=0.5" in str(served.post("logs/filter", wanted)), "the loss in Prefect's log"
    )
    made = {item["key"]: item["data"] for item in served.post("artifacts/filter", {})}
    assert made["sft-progress"] == 50.0
    assert "sft/quality" in made["sft-result"]
    assert "http://mlflow/data-docs/index.html" in made["prepare-data-docs"]
    assert "policy/kl" in made["policy-model"]
    assert "http://mlflow/r/report.html" in made["pipeline-report"]


def test_one_stage_of_a_finished_run_is_done_again_alone(served, approved):
    run = served.run(approved)["name"].split()[1]
    again = served.trigger("rlhf-sft/sft", inputs={"run": run, "force": True})
    assert served.wait(again)["state"]["type"] == "COMPLETED"
    assert served.calls() == ["sft"]


def test_what_follows_is_done_again_on_request_and_time_ends_in_hold(served, approved):
    run = served.run(approved)["name"].split()[1]
    again = served.trigger("rlhf-pipeline/manual", inputs={"run": run, "repeat_from": "evaluate"})
    served.wait(again, "PAUSED")
    assert served.calls() == ["evaluate"]
    note = served.path / "runs" / run / f".approval-{again}.deadline"
    note.write_text("2020-01-01T00:00:00+00:00")  # the hours pass
    deadline = served.get("deployments/name/rlhf-approval-deadline/at")
    late = served.post(
        f"deployments/{deadline['id']}/create_flow_run",
        {"parameters": {"suspended_run": again, "waited_hours": 24}},
    )
    held = served.wait(again, "COMPLETED")
    assert held["state"]["name"] == "HOLD"
    assert "nobody answered within 24 hours" in held["state"]["message"]
    assert served.wait(late["id"])["state"]["type"] == "COMPLETED"


@pytest.mark.nightly  # at every change test_promotion has what is asked and read again
def test_a_question_taken_away_is_asked_again_and_its_answer_outlives_a_failed_promotion(
    served, approved
):
    served.calls()
    run = served.run(approved)["name"].split()[1]
    again = served.trigger("rlhf-pipeline/manual", inputs={"run": run, "repeat_from": "evaluate"})
    served.wait(again, "PAUSED")
    served.cancel(again)
    assert served.wait(again)["state"]["type"] == "CANCELLED"
    served.retry(again)
    served.wait(again, "PAUSED")
    (served.path / "fail-promote").touch()
    served.resume(again, decision="PROMOTE", reviewer="the reviewer", comment="reads well")
    assert "promote broke" in served.wait(again)["state"]["message"]
    served.retry(again)
    assert served.wait(again)["state"]["name"] == "Completed"
    assert served.calls() == ["evaluate", "promote", "promote"]


def test_a_new_dataset_version_starts_the_pipeline_on_it_and_refusals_are_announced(served):
    """While that run lasts another one waits for it."""
    (served.path / "verdict-sft").write_text("REJECT")
    before = {run["id"] for run in served.runs("rlhf-pipeline")}
    event = {
        "event": "rlhf.data-version",
        "resource": {"prefect.resource.id": "rlhf.dataset.abc"},
        "payload": {"version": "data-v3"},
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
    }
    served.post("events", [event])
    (started, *_) = until(
        lambda: [run for run in served.runs("rlhf-pipeline") if run["id"] not in before],
        lambda: f"a run on the new version\n{served.logs()}",
    )
    assert started["parameters"]["settings"]["overrides"] == ["data.version=data-v3"]
    second = served.trigger("rlhf-pipeline/nightly", settings=SETTINGS)
    states = [served.wait(each)["state"]["name"] for each in (started["id"], second)]
    assert states == ["REJECT", "REJECT"]
    both = (served.run(started["id"]), served.run(second))
    first, later = sorted(both, key=itemgetter("start_time"))
    assert first["end_time"] <= later["start_time"], "two at once"
    (served.path / "verdict-sft").unlink()
    resources = [f"rlhf.run.{item['name'].split()[1]}" for item in both]
    wanted = {"event": {"name": ["rlhf.gate-failed"]}, "resource": {"id": resources}}
    until(
        lambda: served.post("events/filter", {"filter": wanted})["total"] == 2,
        "two rlhf.gate-failed",
    )


def start_sft(served, **job_variables):
    """A run that is inside SFT for a minute."""
    served.calls()  # those of earlier tests
    (served.path / "slow-sft").write_text("60")
    run = served.trigger("rlhf-sft/sft", settings=SETTINGS, **job_variables)
    served.wait_for_call("sft")
    return run


def test_a_killed_stage_is_marked_and_its_retry_completes(served):
    """Of a process that was started as anywhere else."""
    run = start_sft(served, command=None)
    assert psutil.Process(served.process_of(run)).cmdline()[1:] == ["-m", "prefect.engine"]
    os.kill(served.process_of(run), signal.SIGKILL)
    served.finish_after_death(run)


def test_a_run_killed_with_its_worker_is_marked_and_the_worker_comes_back(served):
    run = start_sft(served)
    worker = served.servers.children["worker-gpu"]
    for pid in (worker.pid, served.process_of(run)):
        os.kill(pid, signal.SIGKILL)
    served.finish_after_death(run)
    assert served.servers.children["worker-gpu"].pid != worker.pid


def test_what_people_set_a_redeploy_leaves_as_it_is(served):
    """A person who stopped the runs on new data had them again after the next `make up`."""

    def nightly():
        return served.get("deployments/name/rlhf-pipeline/nightly")

    def new_data():
        return served.get("deployments/name/rlhf-pipeline/new-data")

    def automation():
        (found,) = served.get(f"automations/related-to/prefect.deployment.{new_data()['id']}")
        return found

    def switch(active):
        """Turn the switches of the schedule and of the runs on new data."""
        (schedule,) = [one for one in nightly()["schedules"] if one["slug"] == "nightly"]
        path = f"deployments/{nightly()['id']}/schedules/{schedule['id']}"
        served.ask("PATCH", path, {"active": active})
        served.ask("PATCH", f"automations/{automation()['id']}", {"enabled": not active})
        pause = "pause_deployment" if active else "resume_deployment"
        served.post(f"deployments/{new_data()['id']}/{pause}", {})

    assert nightly()["schedules"][0]["active"] is False
    switch(True)
    until(
        lambda: [run for run in served.runs("rlhf-pipeline") if run["auto_scheduled"]],
        lambda: f"runs made by the scheduler\n{served.logs()}",
    )
    mine = {"schedule": {"cron": "0 5 * * *"}, "active": False, "max_scheduled_runs": 3}
    served.post(f"deployments/{nightly()['id']}/schedules", [mine])
    served.rlhf("deploy", PREFECT_API_URL=served.api)
    found = {one["slug"]: one for one in nightly()["schedules"]}
    assert found.pop("nightly")["active"] is True
    (added,) = found.values()
    assert (added["active"], added["max_scheduled_runs"]) == (False, 3)
    assert (automation()["enabled"], new_data()["paused"]) == (False, True)
    served.ask("DELETE", f"deployments/{nightly()['id']}/schedules/{added['id']}")
    switch(False)


def test_missed_nights_are_made_up_for_once_and_not_after_the_schedule_was_switched_off(served):
    deployment = served.get("deployments/name/rlhf-pipeline/nightly")
    (schedule,) = deployment["schedules"]
    one = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
    nights = {"min_runs": 3, "start_time": (datetime.now(UTC) - timedelta(days=3)).isoformat()}

    def miss_three_nights():
        """What the scheduler leaves where no worker listens."""
        served.ask("PATCH", "work_pools/rlhf", {"is_paused": True})
        served.ask("PATCH", one, {"active": True})
        nights["end_time"] = datetime.now(UTC).isoformat()
        served.post(f"deployments/{deployment['id']}/schedule", nights)

    def what_came_of_them():
        served.ask("PATCH", "work_pools/rlhf", {"is_paused": False})
        now = datetime.now(UTC).isoformat()
        due = lambda: [  # noqa: E731
            run
            for run in served.runs("rlhf-pipeline")
            if run["auto_scheduled"] and run["expected_start_time"] < now
        ]
        until(
            lambda: all(run["state"]["name"] not in ("Scheduled", "Late") for run in due()),
            lambda: f"somebody looked at them\n{served.logs()}",
        )
        return due()

    miss_three_nights()
    came = what_came_of_them()
    skipped = [run for run in came if run["state"]["name"] == "Skipped"]
    assert len(skipped) == len(came) - 1 == 2
    (begun,) = [run for run in came if run not in skipped]
    assert begun["expected_start_time"] == max(run["expected_start_time"] for run in came)
    served.cancel(begun["id"])
    nights["start_time"] = (datetime.now(UTC) - timedelta(days=6)).isoformat()
    miss_three_nights()
    served.ask("PATCH", one, {"active": False})
    came = what_came_of_them()
    assert [run["id"] for run in came if run["state"]["name"] != "Skipped"] == [begun["id"]]
    served.wait(begun["id"])


@pytest.mark.nightly  # at every change test_patched_prefect has the transactions that would lock
def test_eight_runs_on_two_workers_do_not_lock_the_database(served):
    runs = [served.trigger("rlhf-sft/sft", settings=SETTINGS) for _ in range(4)]
    runs += [served.trigger("rlhf-prepare/prepare", settings=SETTINGS) for _ in range(4)]
    assert {served.wait(run)["state"]["type"] for run in runs} == {"COMPLETED"}
    assert [name for name, text in served.log_texts().items() if "database is locked" in text] == []


def test_a_second_up_says_that_it_runs_already(served):
    done = served.rlhf("up", check=2)
    assert done == ""
    assert isinstance(served.servers, Servers)


def test_prefects_server_tells_of_decisions_and_of_runs_that_died(served):
    """By `rlhf notify`; repeated, it tells once, and what a person switched off stays off."""
    heard = []
    with listening(ThreadingHTTPServer, Receiver) as receiver:
        address = f"http://127.0.0.1:{receiver.port}/hook"
        for _ in range(2):
            served.rlhf("notify", address, "--name", "me", PREFECT_API_URL=served.api)
        heard = receiver.heard
        assert [path for path, _ in heard] == ["/hook"] * 2
        event = {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "rlhf.gate-failed",
            "resource": {"prefect.resource.id": "rlhf.run.one"},
            "payload": {"run": "one", "stage": "sft", "verdict": "HOLD"},
        }
        served.post("events", [event])
        for flow, state in ENDED.items():
            named = served.get(f"flows/name/{flow}")
            served.post("flow_runs/", {"flow_id": named["id"], "name": "mine", "state": state})
        until(lambda: len(heard) > 5, lambda: f"{heard}\n{served.logs()}")

        def automations():
            found = served.post("automations/filter", {})
            return [one for one in found if one["name"].startswith("rlhf: tell me")]

        for one in automations():
            served.ask("PATCH", f"automations/{one['id']}", {"enabled": False})
        served.rlhf("notify", address, "--name", "me", PREFECT_API_URL=served.api)
        assert [one["enabled"] for one in automations()] == [False, False]
    told = {said["subject"]: said["body"] for _, said in heard[2:6]}
    assert "stage: sft\nverdict: HOLD" in told.pop("rlhf: gate-failed")
    assert {subject: body.splitlines()[0] for subject, body in told.items()} == {
        "rlhf: run Failed": "mine: lost its worker",
        "rlhf: run TimedOut": "mine: nobody answered",
        "rlhf: run WAITING": "mine: people label at http://labels",
    }
