"""The alarm that answers HOLD; what people do in the UI is in test_served."""

from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Completed, Paused, Running, Scheduled

from flows import promotion

ACCEPT, REJECT = SetStateStatus.ACCEPT, SetStateStatus.REJECT


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
                return SimpleNamespace(status=takes.pop(0), details=None)

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


@pytest.mark.parametrize("state", [Completed(), Scheduled(name="Resuming")])
def test_a_run_that_was_answered_or_has_ended_needs_no_alarm(ring, state):
    assert ring([state]) == []
