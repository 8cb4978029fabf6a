"""Approval: where the settings ask for a person, the pipeline waits for one without a worker.

The run suspends: its process ends, and the answer starts it again from the top, past everything
that is finished. A second, scheduled flow run answers HOLD when the time is up.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Cancelled
from pydantic import Field, ValidationError

from flows import bindings
from flows.artifacts import stage_page
from flows.opening import is_deployed
from rlhf_core.config import PipelineConfig
from rlhf_core.schema import RunContext, StageResult, Verdict

DEADLINE = "rlhf-approval-deadline/at"
GRACE = timedelta(days=30)
"""Prefect's own limit fails the run; it lies far behind ours, which answers HOLD."""
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
    answer = _answer(config, evaluated, context)
    bindings.record_approval(uri, answer.decision, answer.reviewer, answer.comment)
    if answer.decision == "PROMOTE":
        return None
    return answer.decision, f"{answer.decision} by {answer.reviewer}: {answer.comment}"


def _answer(config: PipelineConfig, evaluated: StageResult, context: RunContext) -> Approval:
    """Suspend until there is an answer that can be read, or the time is up."""
    wait = timedelta(hours=config.promotion.wait_hours)
    page = f"{stage_page('evaluate', evaluated)}\n\nFiles: `{context.directory}`"
    form = Approval.with_initial_data(description=page)
    for question in range(MOST_QUESTIONS):
        # A new key asks anew; with the old one an unreadable answer would be read for ever.
        deadline = _set_deadline(question, wait)
        try:
            answer = suspend_flow_run(
                wait_for_input=form,
                timeout=int((wait + GRACE).total_seconds()),
                key=f"approval-{question}",
            )
        except ValidationError:
            continue
        _lift_deadline(deadline)
        return Approval.model_validate(answer.model_dump())
    raise RuntimeError(f"no readable answer after {MOST_QUESTIONS} questions")


def _set_deadline(question: int, wait: timedelta) -> UUID:
    """Schedule the answer HOLD; asked again for the same question, return the same run."""
    run = run_deployment(
        DEADLINE,
        parameters={"suspended_run": str(flow_run.id), "waited_hours": wait / timedelta(hours=1)},
        scheduled_time=datetime.now(UTC) + wait,
        timeout=0,
        as_subflow=False,
        idempotency_key=f"{flow_run.id}:approval:{question}",
    )
    return cast(FlowRun, run).id


def _lift_deadline(deadline: UUID) -> None:
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(deadline)
        if run.state is not None and run.state.is_scheduled():
            client.set_flow_run_state(deadline, Cancelled(message="answered"), force=True)


@flow(name="rlhf-approval-deadline", flow_run_name="deadline of {suspended_run}")
def answer_when_time_is_up(suspended_run: UUID, waited_hours: float) -> None:
    """Answer HOLD for a pipeline that still waits for a person; otherwise do nothing."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(suspended_run)
        if run.state is None or not run.state.is_paused():
            return
        answer = {
            "decision": "HOLD",
            "reviewer": "time limit",
            "comment": f"nobody answered within {waited_hours:g} hours",
        }
        client.resume_flow_run(suspended_run, run_input=answer)
