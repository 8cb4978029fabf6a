"""Approval: where the settings ask for a person, the pipeline waits for one without a worker.

The run suspends: its process ends, and the answer starts it again from the top, past everything
that is finished. A second, scheduled flow run answers HOLD when the time is up.
"""

import logging
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.deployments import run_deployment
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Cancelled
from pydantic import Field, ValidationError

from flows import bindings
from flows.artifacts import file_report, report_line, stage_page
from flows.files import write_atomically
from flows.lost_server import patiently
from flows.opening import is_deployed
from rlhf_core.config import PipelineConfig
from rlhf_core.schema import RunContext, StageResult, Verdict

logger = logging.getLogger(__name__)

DEADLINE = "rlhf-approval-deadline/at"
GRACE = timedelta(days=30)
"""Prefect's own limit fails the run; it lies far behind ours, which answers HOLD."""
RESUMED = "Resuming"
"""State that Prefect gives a suspended run when somebody answers."""
POLL_SECONDS = 2.0
MOST_QUESTIONS = 20
"""Answers that cannot be read are asked for again, so often."""


class Approval(RunInput):
    """Your decision about the model described above."""

    # No defaults: a run that is retried past its time limit would pass with them, unasked.
    decision: Literal["PROMOTE", "HOLD", "REJECT"] = Field(
        description="PROMOTE makes it the champion. HOLD leaves it a candidate. REJECT gives it up."
    )
    reviewer: str = Field(min_length=1, description="Your name; it is recorded with the model.")
    comment: str = Field(description="Why; it is recorded with the model.")


def ask_person(
    config: PipelineConfig, evaluated: StageResult, context: RunContext
) -> tuple[Verdict, str] | None:
    """Ask a person whether the model may be promoted; None means yes.

    Returns:
        The verdict and why, unless the answer is PROMOTE.
    """
    if config.promotion.approval == "gates":
        return None
    uri = evaluated.model.uri
    if not is_deployed():
        return "HOLD", (
            f"promotion.approval asks for a person: look at the report, then `rlhf promote {uri}`"
        )
    bindings.ask_approval(uri)
    answer = _answer(config, evaluated, context)
    bindings.record_approval(uri, answer.decision, answer.reviewer, answer.comment)
    if answer.decision == "PROMOTE":
        return None
    return answer.decision, f"{answer.decision} by {answer.reviewer}: {answer.comment}"


def _answer(config: PipelineConfig, evaluated: StageResult, context: RunContext) -> Approval:
    """Suspend until there is an answer that can be read, or the time is up."""
    hours = config.promotion.wait_hours
    deadline = _deadline(context, timedelta(hours=hours))
    form = Approval.with_initial_data(description=_page(evaluated, context, deadline))
    for question in range(MOST_QUESTIONS):
        if datetime.now(UTC) > deadline and _num_answers(deadline) <= question:
            return Approval(**_hold(hours))
        alarm = patiently("setting_alarm", partial(_set_alarm, deadline, hours))
        try:
            # Not repeated: half done, it must not be done again. The server has just answered.
            # A new key asks anew; with the old one an unreadable answer would be read for ever.
            answer = suspend_flow_run(
                wait_for_input=form,
                timeout=int((timedelta(hours=hours) + GRACE).total_seconds()),
                key=f"approval-{question}",
            )
        except ValidationError:
            continue
        patiently("lifting_alarm", partial(_lift_alarm, alarm))
        return Approval.model_validate(answer.model_dump())
    raise RuntimeError(f"no readable answer after {MOST_QUESTIONS} questions")


def _page(evaluated: StageResult, context: RunContext, deadline: datetime) -> str:
    """What the person decides from: gates, metrics, and the run's page."""
    path, url = file_report(context.directory, evaluated)
    return "\n\n".join(
        (
            report_line(path, url),  # first: the metrics below it are many
            stage_page("evaluate", evaluated),
            f"Files: `{context.directory}`",
            f"Without an answer by {deadline:%Y-%m-%d %H:%M} UTC the verdict is HOLD.",
        )
    )


def _hold(hours: float) -> dict[str, str]:
    comment = f"nobody answered within {hours:g} hours"
    return {"decision": "HOLD", "reviewer": "time limit", "comment": comment}


def _deadline(context: RunContext, wait: timedelta) -> datetime:
    """Return when the time is up: counted from the first time this flow run asked."""
    note = context.directory / f".approval-{flow_run.id}.deadline"
    if not note.exists():
        write_atomically(note, (datetime.now(UTC) + wait).isoformat())
    return datetime.fromisoformat(note.read_text(encoding="utf-8"))


def _num_answers(deadline: datetime) -> int:
    """How many answers people gave in time; one read later counts, one given later does not."""

    def read() -> list[State]:
        with get_client(sync_client=True) as client:
            return client.read_flow_run_states(UUID(str(flow_run.id)))

    states = patiently("reading_answers", read)
    return sum(state.name == RESUMED and state.timestamp <= deadline for state in states)


def _set_alarm(deadline: datetime, hours: float) -> UUID:
    """Schedule the answer HOLD; set again, it is the same one."""
    run = run_deployment(
        DEADLINE,
        parameters={"suspended_run": str(flow_run.id), "waited_hours": hours},
        scheduled_time=deadline,
        timeout=0,
        as_subflow=False,
        idempotency_key=f"{flow_run.id}:approval",
    )
    return cast(FlowRun, run).id


def _lift_alarm(alarm: UUID) -> None:
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(alarm)
        if run.state is not None and run.state.is_scheduled():
            client.set_flow_run_state(alarm, Cancelled(message="answered"), force=True)


@flow(name="rlhf-approval-deadline", flow_run_name="deadline of {suspended_run}")
def answer_when_time_is_up(suspended_run: UUID, waited_hours: float) -> None:
    """Answer HOLD for a pipeline that waits for a person.

    One that is just about to ask is waited for; one that was answered or has ended needs nothing,
    and a retry of it finds by itself that the time is up.
    """
    with get_client(sync_client=True) as client:
        while True:
            state = patiently("reading_run", partial(client.read_flow_run, suspended_run)).state
            if state is None or state.is_final() or state.is_scheduled():
                return
            if state.is_paused():
                answer = client.resume_flow_run(suspended_run, run_input=_hold(waited_hours))
                if answer.status is SetStateStatus.ACCEPT:
                    return
                logger.warning("hold_not_taken flow_run=%s: %s", suspended_run, answer.details)
            time.sleep(POLL_SECONDS)
