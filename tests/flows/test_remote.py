"""Which runs of a stage an attempt of the pipeline counts as its own."""

from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from prefect.states import Completed, Crashed, Failed

from rlhf_flows.engine import remote
from rlhf_flows.engine.remote import StageFailedError, run_deployed_stage

SFT = {"sft": "models:/rlhf-sft/1"}


class Prefect:
    """Starts a run under every new key, and finds the one that is there under a known key."""

    def __init__(self):
        self.runs = {}
        self.ends = []
        """States in which the next runs end, and whether they began; then all complete."""

    def read_flow_runs(self, flow_run_filter):
        wanted = flow_run_filter.idempotency_key.any_
        return [run for key, run in self.runs.items() if key in wanted]

    def start(self, name, *, parameters, idempotency_key, **options):
        if idempotency_key not in self.runs:
            state, began = self.ends.pop(0) if self.ends else (Completed(), True)
            self.runs[idempotency_key] = SimpleNamespace(
                id=len(self.runs),
                name="stage",
                idempotency_key=idempotency_key,
                inputs=parameters["inputs"],
                state=state,
                start_time=datetime.now(UTC) if began else None,
            )
        return self.runs[idempotency_key]


@pytest.fixture
def prefect(monkeypatch):
    made = Prefect()
    monkeypatch.setattr(remote, "get_client", lambda sync_client: nullcontext(made))
    monkeypatch.setattr(remote, "run_deployment", made.start)
    return made


@pytest.fixture
def attempt(prefect, monkeypatch):
    """Run the stage in the given attempt of the pipeline; returns the inputs of the run it took."""

    def run(number, inputs):
        monkeypatch.setattr(remote, "flow_run", SimpleNamespace(id="one", run_count=number))
        taken = run_deployed_stage.fn("reward", "rlhf-reward", inputs)
        return next(run.inputs for run in prefect.runs.values() if str(run.id) == taken)

    return run


def test_a_retry_takes_the_run_of_an_earlier_attempt(prefect, attempt):
    assert attempt(1, SFT) == attempt(2, SFT) == SFT
    assert len(prefect.runs) == 1


def test_a_retry_does_not_take_a_run_with_other_inputs(attempt):
    attempt(1, SFT)
    other = {"sft": "models:/rlhf-sft/2"}
    assert attempt(2, other) == other


def test_a_stage_that_failed_is_started_once_more_by_each_retry(prefect, attempt):
    attempt(1, SFT)
    prefect.runs[next(iter(prefect.runs))].state = Failed()
    assert attempt(2, SFT) == SFT
    assert len(prefect.runs) == 2
    for run in prefect.runs.values():
        run.state = Failed(message="no rows")
    with pytest.raises(StageFailedError, match="no rows"):
        attempt(2, SFT)


def test_a_stage_whose_process_died_before_it_began_is_started_again(prefect, attempt):
    """As one that starts while the server restarts: its first call is refused, and not repeated."""
    prefect.ends = [(Crashed(), False), (Crashed(), False)]
    assert attempt(1, SFT) == SFT
    assert len(prefect.runs) == 3
    assert attempt(1, SFT) == SFT
    assert len(prefect.runs) == 3


@pytest.mark.parametrize(
    ("ends", "num_runs"),
    [
        ([(Crashed(message="no code"), False)] * 9, 3),
        ([(Crashed(message="no code"), True)], 1),
        ([(Failed(message="no code"), False)], 1),
    ],
)
def test_a_stage_that_never_begins_or_died_at_work_waits_for_a_retry(
    prefect, attempt, ends, num_runs
):
    prefect.ends = list(ends)
    with pytest.raises(StageFailedError, match="no code"):
        attempt(1, SFT)
    assert len(prefect.runs) == num_runs
    prefect.ends = []
    assert attempt(2, SFT) == SFT
    assert len(prefect.runs) == num_runs + 1
