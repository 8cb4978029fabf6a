import pytest

from rlhf_core.schema import RunContext
from rlhf_flows.engine import artifacts, events, watching
from rlhf_flows.engine.artifacts import show_result
from rlhf_flows.engine.runs import in_prefect
from rlhf_flows.engine.watching import ProgressShown, TrainingObserver, watch_training


@pytest.fixture
def context(tmp_path):
    return RunContext(run_id="one", directory=tmp_path)


@pytest.fixture
def told(monkeypatch):
    """What was announced."""
    found = []
    monkeypatch.setattr(
        watching, "announce", lambda event, context, **payload: found.append((event, payload))
    )
    return found


@pytest.fixture
def deployed(monkeypatch):
    """As if a worker ran the flow, and the Prefect server were lost."""

    def lost(*arguments, **keywords):
        raise ConnectionError("lost")

    monkeypatch.setattr(in_prefect, "is_deployed", lambda: True)
    for module in (watching, artifacts):
        monkeypatch.setattr(module, "is_deployed", lambda: True)
    monkeypatch.setattr(watching, "create_progress_artifact", lost)
    monkeypatch.setattr(watching, "update_progress_artifact", lost)
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lost)


@pytest.mark.parametrize("action", ["raise_kl_coef", "lower_learning_rate", "roll_back"])
def test_an_intervention_of_the_kl_watch_is_an_event(context, told, action):
    with watch_training(context, "policy") as observer:
        observer.kl_spike(action, f"kl_spike action={action} kl_per_token=0.9")
    ((event, payload),) = told
    assert event == "rlhf.kl-spike"
    assert (payload["stage"], payload["action"]) == ("policy", action)
    assert "kl_per_token=0.9" in payload["message"]


def test_the_end_of_training_is_announced_by_its_error_and_steps_not_at_all(context, told):
    with watch_training(context, "policy") as observer:
        observer.kl_spike("stop", "kl_spike action=stop")
        observer.step("ppo", 7, 9, {"loss": 1.0})
    assert told == []


def test_a_lost_prefect_server_costs_a_training_nothing(context, told, deployed, caplog):
    with watch_training(context, "sft") as observer:
        observer.step("sft", 1, 2, {"sft/loss": 1.0})
    assert "progress_not_shown" in caplog.text


def test_progress_is_shown_from_a_thread_that_outlives_an_outage(context, monkeypatch):
    shown, failures = [], [ConnectionError("lost")]

    def update(artifact, *, progress, description):
        if failures:
            raise failures.pop()
        shown.append((progress, description))

    monkeypatch.setattr(watching, "update_progress_artifact", update)
    monkeypatch.setattr(watching, "UPDATE_SECONDS", 0.01)
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.01)
    progress = ProgressShown("1")
    observer = TrainingObserver(context, "sft", progress)
    observer.step("sft", 1, 4, {"sft/loss": 1.0})
    while failures:
        pass
    observer.step("sft", 3, 4, {"sft/loss": 0.5})
    progress.close()
    assert shown[-1] == (75.0, "sft step=3 of=4 loss=0.5")


def test_a_finished_stage_is_not_lost_because_it_cannot_be_shown(
    context, stages, settings, deployed, caplog
):
    config = settings.config
    show_result("sft", stages.train_sft(config, stages.read_splits(context.directory), context),
                config, context)  # fmt: skip
    assert "not_shown=sft-result" in caplog.text


def test_an_event_that_cannot_be_sent_costs_a_warning(context, monkeypatch, caplog):
    def lost(**keywords):
        raise ConnectionError("lost")

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setattr(events, "emit_event", lost)
    events.announce("rlhf.promoted", context, model="m")
    assert "event_not_sent event=rlhf.promoted" in caplog.text
