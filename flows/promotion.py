"""Approval: where the settings ask for a person, the pipeline waits for one without a worker.

The run suspends: its process ends, and the answer starts it again from the top, past everything
that is finished. A second, scheduled flow run answers HOLD when the time is up.
"""

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, FlowRunInput, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.deployments import run_deployment
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from pydantic import Field, ValidationError

from rlhf_core.adapters.registry import approval
from rlhf_core.adapters.registry.champions import read_history
from rlhf_core.config import PipelineConfig
from rlhf_core.schema import RunContext, StageResult, Verdict
from rlhf_core.schema.shown import shown_code
from rlhf_core.storage.records import write_text
from rlhf_flows.engine.artifacts import (
    changed_answers,
    file_report,
    report_line,
    stage_page,
)
from rlhf_flows.engine.lost_server import until_prefect_answers
from rlhf_flows.engine.runs.in_prefect import is_deployed

logger = logging.getLogger(__name__)

DEADLINE = "rlhf-approval-deadline/at"
GRACE = timedelta(days=30)
"""Prefect's own limit fails the run; it lies far behind ours, which answers HOLD."""
POLL_SECONDS = 2.0
MOST_REFUSALS = 30
"""So often the server may refuse the answer HOLD, about a minute long."""
MOST_QUESTIONS = 20
"""About one model; those without an answer that can be read are asked again."""


class Approval(RunInput):
    """Your decision about the model described above."""

    # No defaults: a run that is retried past its time limit would pass with them, unasked.
    decision: Literal["PROMOTE", "HOLD", "REJECT"] = Field(
        description="PROMOTE makes it the champion. HOLD leaves it a candidate. REJECT gives it up."
    )
    # A pattern, because Prefect checks the form by its schema, which knows of no stripping.
    reviewer: str = Field(pattern=r"\S", description="Your name; it is recorded with the model.")
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
    answer, said_at = _answer(config, evaluated, context)
    decision, words = approval.record_approval(
        uri,
        answer.decision,
        reviewer=answer.reviewer,
        comment=answer.comment,
        said_at=said_at,
    )
    return None if decision == "PROMOTE" else (decision, words)


def _answer(
    config: PipelineConfig, evaluated: StageResult, context: RunContext
) -> tuple[Approval, datetime | None]:
    """Return what was answered about this model and when; suspend until there is an answer.

    Questions are distinguished by the model and a number. One with an answer is not asked again,
    however often the run is retried; one that the run was taken away from is asked anew.

    Returns:
        The answer, and when it was given: never, if the time is up.
    """
    hours = config.promotion.wait_hours
    deadline = _deadline(context, timedelta(hours=hours))
    form = Approval.with_initial_data(description=_page(config, evaluated, context, deadline))
    about = f"approval-{evaluated.model.sha256[:12]}"
    inputs = until_prefect_answers("reading_answers", partial(_inputs, about))
    for key in (f"{about}-{question}" for question in range(MOST_QUESTIONS)):
        given = inputs.get(f"suspended-{key}-response")
        if given is None and f"suspended-{key}-schema" in inputs:
            continue
        if (cast(datetime, given.created) if given else datetime.now(UTC)) > deadline:
            return Approval(**_hold(hours)), None
        alarm = until_prefect_answers("setting_alarm", partial(_set_alarm, deadline, hours, key))
        if given is not None:
            until_prefect_answers("lifting_alarm", partial(_lift_alarm, alarm))
            with suppress(ValidationError):
                return Approval.model_validate_json(given.value), given.created
            continue
        approval.ask_approval(evaluated.model.uri)
        # Not repeated: half done, it must not be done again. The server has just answered.
        # It comes back only where the server remembers a question that has lost its form.
        with suppress(ValidationError):
            suspend_flow_run(
                wait_for_input=form,
                timeout=int((timedelta(hours=hours) + GRACE).total_seconds()),
                key=key,
            )
    raise RuntimeError(f"no readable answer after {MOST_QUESTIONS} questions")


def _page(
    config: PipelineConfig, evaluated: StageResult, context: RunContext, deadline: datetime
) -> str:
    """What the person decides from: report, champion, changed answers, gates, metrics."""
    path, url = file_report(context.directory, evaluated)
    current = read_history(config.project).current
    return "\n\n".join(
        (
            report_line(path, url),  # first: the metrics below it are many
            _champion_line(evaluated, current.policy if current else None),
            f"Without an answer by {deadline:%Y-%m-%d %H:%M} UTC the verdict is HOLD.",
            *changed_answers(evaluated),
            stage_page("evaluate", evaluated),
            f"Files: {shown_code(context.directory)}",
        )
    )


def _champion_line(evaluated: StageResult, present: str | None) -> str:
    """Say what would be replaced, and whether the candidate was compared with just that."""
    compared = evaluated.report.champion
    if present is None:
        return "Present champion: none; the candidate would be the first."
    line = f"Present champion: {shown_code(present)}"
    if present == evaluated.model.uri:
        return f"{line}, this very model, evaluated again."
    if compared != present:
        with_whom = f"with {shown_code(compared)}" if compared else "with no champion"
        return f"{line}. **The candidate was compared {with_whom}: promotion will be refused.**"
    rate = evaluated.report.metrics.get("policy/win_rate_over_champion")
    if rate is None:
        return f"{line}, which the candidate was compared with."
    beaten = f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"
    return f"{line}; the candidate's win rate over it is **{beaten}**, n = {rate.num_samples}."


def _hold(hours: float) -> dict[str, str]:
    comment = f"nobody answered within {hours:g} hours"
    return {"decision": "HOLD", "reviewer": "time limit", "comment": comment}


def _deadline(context: RunContext, wait: timedelta) -> datetime:
    """Return when the time is up: counted from the first time this flow run asked."""
    note = context.directory / f".approval-{flow_run.id}.deadline"
    if not note.exists():
        write_text(note, (datetime.now(UTC) + wait).isoformat())
    return datetime.fromisoformat(note.read_text(encoding="utf-8"))


def _inputs(about: str) -> dict[str, FlowRunInput]:
    """Return the forms and answers of all questions about a model that this flow run asked."""
    run, prefix = UUID(str(flow_run.id)), f"suspended-{about}-"
    with get_client(sync_client=True) as client:
        found = client.filter_flow_run_input(run, prefix, 3 * MOST_QUESTIONS, set())
    return {each.key: each for each in found}


def _set_alarm(deadline: datetime, hours: float, key: str) -> UUID:
    """Schedule the answer HOLD; set again, it is the same one."""
    run = run_deployment(
        DEADLINE,
        parameters={"suspended_run": str(flow_run.id), "waited_hours": hours},
        scheduled_time=deadline,
        timeout=0,
        as_subflow=False,
        idempotency_key=f"{flow_run.id}:{key}",
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
    and a retry of it finds by itself that the time is up. One that takes no answer, because its
    process died before the form was there, is failed, so that a person can retry it.
    """
    num_refusals = 0
    with get_client(sync_client=True) as client:
        while True:
            state = until_prefect_answers(
                "reading_run", partial(client.read_flow_run, suspended_run)
            ).state
            if state is None or state.is_final() or state.is_scheduled():
                return
            if state.is_paused():
                answer = client.resume_flow_run(suspended_run, run_input=_hold(waited_hours))
                if answer.status is SetStateStatus.ACCEPT:
                    return
                num_refusals += 1
            if num_refusals == MOST_REFUSALS:
                logger.error("hold_rejected flow_run=%s: %s", suspended_run, answer.details)
                lost: State[None] = Failed(
                    message="the question lost its form and takes no answer; Retry"
                )
                client.set_flow_run_state(suspended_run, lost)
                return
            time.sleep(POLL_SECONDS)
