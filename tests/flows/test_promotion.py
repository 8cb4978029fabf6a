"""Which question is asked, and the alarm that answers HOLD; what people do is in test_served."""

import getpass
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Completed, Paused, Running, Scheduled
from typer.testing import CliRunner

from rlhf_core.schema import Estimate, RunContext
from rlhf_flows import promotion
from rlhf_flows.commands.cli import app
from rlhf_flows.engine.runs.settings import RunSettings
from tests.flows.fakes import FakeStages

ACCEPT, REJECT = SetStateStatus.ACCEPT, SetStateStatus.REJECT
YES = '{"decision": "PROMOTE", "reviewer": "the reviewer", "comment": "reads well"}'
HELD = ("HOLD", "HOLD by time limit: nobody answered within 24 hours")


class Suspended(BaseException):
    """The process ends here."""


class Asking:
    """One flow run: what Prefect keeps of its questions and answers, whoever comes and goes."""

    def __init__(self, stages, directory, config):
        self.stages = stages
        self.config = config
        self.context = RunContext(run_id="one", directory=directory)
        self.inputs = {}
        self.alarms = set()
        self.model = stages._model("policy", self.context)
        self.deadline = datetime.now(UTC) + timedelta(hours=24)

    def filter_flow_run_input(self, run, key_prefix, limit, exclude_keys):
        return [each for key, each in self.inputs.items() if key.startswith(key_prefix)]

    def suspend(self, wait_for_input, timeout, key):
        self._keep(f"{key}-schema", "{}")
        raise Suspended(key)

    def answer(self, key, value=YES, age=timedelta()):
        self._keep(f"{key}-response", value, datetime.now(UTC) - age)

    def _keep(self, name, value, created=None):
        name = f"suspended-{name}"
        assert name not in self.inputs, "409 Conflict"
        self.inputs[name] = SimpleNamespace(key=name, value=value, created=created)

    def attempt(self):
        """Come from the top once more; returns the question it suspends with, or the outcome."""
        evaluated = self.stages._outcome("evaluate", self.model)
        try:
            return promotion.ask_person(self.config, evaluated, self.context)
        except Suspended as suspended:
            return str(suspended)


@pytest.fixture
def asking(tmp_path, monkeypatch, config_path):
    wanted = ("promotion.approval=person", "promotion.wait_hours=24")
    config = RunSettings(file=config_path, overrides=wanted).config
    made = Asking(FakeStages(tmp_path).install(monkeypatch), tmp_path, config)
    monkeypatch.setattr(promotion, "get_client", lambda sync_client: nullcontext(made))
    monkeypatch.setattr(promotion, "is_deployed", lambda: True)
    monkeypatch.setattr(promotion, "flow_run", SimpleNamespace(id=uuid4()))
    monkeypatch.setattr(promotion, "suspend_flow_run", made.suspend)
    monkeypatch.setattr(promotion, "_page", lambda *arguments: "the page")
    monkeypatch.setattr(promotion, "_deadline", lambda *arguments: made.deadline)
    monkeypatch.setattr(
        promotion, "_set_alarm", lambda deadline, hours, key: made.alarms.add(key) or key
    )
    monkeypatch.setattr(promotion, "_lift_alarm", made.alarms.discard)
    return made


def test_an_answer_is_read_again_by_every_retry(asking):
    question = asking.attempt()
    assert asking.alarms == {question}
    asking.answer(question)
    assert [asking.attempt() for _ in range(3)] == [None] * 3
    assert asking.alarms == set()


def test_a_question_that_was_never_answered_is_asked_anew(asking):
    first, second = asking.attempt(), asking.attempt()
    assert first != second
    assert asking.alarms == {first, second}
    asking.answer(second)
    assert asking.attempt() is None


@pytest.mark.parametrize(
    "answer", ['{"decision": "PERHAPS"}', YES.replace("the reviewer", "  ")], ids=["word", "name"]
)
def test_an_answer_that_cannot_be_read_is_asked_for_again(asking, answer):
    first = asking.attempt()
    asking.answer(first, answer)
    assert asking.attempt() not in (None, first)


def test_an_answer_about_another_model_does_not_count(asking):
    first = asking.attempt()
    asking.model = asking.model.model_copy(update={"sha256": "f" * 64})
    asking.answer(first)
    second = asking.attempt()
    assert second == "approval-ffffffffffff-0"
    assert asking.stages.approvals[asking.model.uri] == "ASKED"


def test_an_answer_given_in_time_counts_whenever_it_is_read(asking):
    asking.attempt()
    asking.answer(asking.attempt(), age=timedelta(minutes=2))
    asking.deadline = datetime.now(UTC) - timedelta(minutes=1)
    assert asking.attempt() is None


def test_an_answer_given_too_late_is_the_time_limits(asking):
    asking.answer(asking.attempt())
    asking.deadline = datetime.now(UTC) - timedelta(minutes=1)
    assert asking.attempt() == HELD


def test_after_the_time_limit_nobody_is_asked(asking):
    asking.deadline = datetime.now(UTC) - timedelta(minutes=1)
    assert asking.attempt() == HELD


@pytest.fixture
def ring(monkeypatch):
    """Let the alarm ring for a run that goes through ``states``; returns the answers it gave."""

    def run(states, takes=(ACCEPT,)):
        given, states, takes = [], list(states), list(takes)

        class Client:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                pass

            def read_flow_run(self, run):
                return SimpleNamespace(state=states.pop(0))

            def resume_flow_run(self, run, run_input):
                given.append(run_input)
                return SimpleNamespace(status=takes.pop(0), details="no schema")

            def set_flow_run_state(self, run, state):
                given.append(state)

        monkeypatch.setattr(promotion, "get_client", lambda sync_client: Client())
        monkeypatch.setattr(promotion, "POLL_SECONDS", 0)
        promotion.answer_when_time_is_up.fn(uuid4(), 24.0)
        return given

    return run


def test_an_alarm_that_rings_before_the_question_waits_for_it(ring):
    (answer,) = ring([Running(), Running(), Paused()])
    assert answer["decision"] == "HOLD"
    assert answer["comment"] == "nobody answered within 24 hours"


def test_an_answer_that_the_server_did_not_take_is_given_again(ring):
    assert len(ring([Paused(), Paused()], takes=(REJECT, ACCEPT))) == 2


def test_a_question_that_takes_no_answer_is_failed_for_a_person_to_retry(ring, caplog):
    *_, end = ring([Paused()] * 99, takes=[REJECT] * 99)
    assert end.is_failed()
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "hold_rejected" in line and "no schema" in line]) == 1


@pytest.mark.parametrize("state", [Completed(), Scheduled(name="Resuming")])
def test_a_run_that_was_answered_or_has_ended_needs_no_alarm(ring, state):
    assert ring([state]) == []


THIS, OTHER = "models:/rlhf-policy/3", "models:/rlhf-policy/2"
RATE = Estimate(value=0.62, low=0.55, high=0.69, num_samples=500)
CHAMPIONS = [
    (None, None, "none; the candidate would be the first"),
    (
        OTHER,
        OTHER,
        "`models:/rlhf-policy/2`; the candidate's win rate over it is **0.62 [0.55, 0.69]**",
    ),
    (OTHER, None, "compared with no champion: promotion will be refused"),
    (OTHER, "models:/rlhf-policy/1", "compared with `models:/rlhf-policy/1`: promotion will be"),
    (THIS, OTHER, "this very model, evaluated again"),
]


@pytest.mark.parametrize(("present", "compared", "said"), CHAMPIONS)
def test_the_question_names_the_champion_of_this_moment(asking, present, compared, said):
    """An approval may take days: what was compared with may be champion no longer."""
    evaluated = asking.stages._outcome("evaluate", asking.model)
    metrics = {"policy/win_rate_over_champion": RATE} if compared else {}
    report = evaluated.report.model_copy(update={"champion": compared, "metrics": metrics})
    model = asking.model.model_copy(update={"uri": THIS})
    evaluated = evaluated.model_copy(update={"report": report, "model": model})
    assert said in promotion._champion_line(evaluated, present)


def test_gates_are_required_by_who_is_logged_in_where_no_name_is_given(mlflow_home, tmp_path):
    (tmp_path / "none.yaml").write_text("{}\n")
    asked = ["gates", "--require", str(tmp_path / "none.yaml"), "--by", "  "]
    assert f"as {getpass.getuser()}, 2" in CliRunner().invoke(app, asked).stdout
