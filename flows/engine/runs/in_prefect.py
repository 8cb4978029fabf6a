"""Which run a flow run works on, the same for a person, a parent and a retry, and its name.

Alone here in knowing Prefect; runs begun without it have folders all the same.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.run_records import fetch_records, keep_absence
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError
from rlhf_core.schema import RunContext, StageName
from rlhf_flows.engine.lost_server import best_effort
from rlhf_flows.engine.prefect_server import every_flow_run
from rlhf_flows.engine.runs.folder import locate_run, open_run, require_run, settings_of_run
from rlhf_flows.engine.runs.locks import hold_stage
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.engine.runs.stage_folder import archive_stage
from rlhf_flows.engine.zombies import labels_of_this_process

_OF_THE_FORM = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma"
    "|tau|upsilon|phi|chi|psi|omega)[0-9]*-[a-z][a-z0-9-]*"
)
"""Prefect's run form proposes a name of a Greek letter and a place, like ``phi2-tolfalas``.

Its list of them is in the page's script alone. Nor does a flow run say who named it."""


def open_context(
    settings: RunSettings | None, run: str | None, *, may_begin: bool = True
) -> tuple[PipelineConfig, RunContext]:
    """Return the settings and folder of the run this flow works on.

    Without a run a new one is named after the flow run, so that a retry finds it again.

    Args:
        settings: of the run; None takes those of an existing one.
        run: to go on with, or the name of a new one.
        may_begin: whether ``run`` may name one that does not exist.

    Raises:
        ConfigError: neither settings nor an existing run were given, or they disagree; or there is
            no such run, and it may not begin.
    """
    label_process()
    if settings is None and run is None:
        raise ConfigError("give settings to start a run with, or a run to go on with")
    if settings is None:
        context = locate_run(str(run), PipelineConfig.model_fields["runs"].default)
        _fetch_records(None, context)
        config = settings_of_run(context)
    else:
        config = settings.config
        if run is not None and not may_begin:
            find_run(config, run)
        elif (run := run or _name_after_flow_run()) is not None:
            _fetch_records(config.project, locate_run(run, config.runs))
        context = open_run(config, run)
    return config, context.model_copy(update={"flow_run_id": flow_run.id})


def find_run(config: PipelineConfig, run: str) -> RunContext:
    """Return a run that is there, with what other machines did of it; its settings stay its own.

    Raises:
        ConfigError: there is no such run.
    """
    context = locate_run(run, config.runs)
    _fetch_records(config.project, context)
    require_run(context)
    return context


def _fetch_records(project: str | None, context: RunContext) -> None:
    """Fetch what other machines did of the run; what they withdrew is moved away here too."""
    for stage in fetch_records(project, context):
        name = cast(StageName, stage)
        with hold_stage(context, name):
            archive_stage(context, name)


def name_of_run() -> str:
    """Return the flow run's name: what a person typed, else what it is and its run.

    A name that only looks like one of the form's stays behind that, for a person may have meant it.
    """
    typed = str(flow_run.name or "")
    proposed = _OF_THE_FORM.fullmatch(typed)
    if typed and not proposed and not _is_made_up(typed):
        return typed
    inputs = flow_run.parameters.get("inputs")
    given = inputs if isinstance(inputs, dict) else vars(inputs)
    kind = given.get("role") or str(flow_run.flow_name).removeprefix("rlhf-")
    run = str(given.get("run") or given.get("collection") or _name_after_flow_run() or "")
    name = f"{kind} {run.rsplit('/', 1)[-1]}"
    return f"{name} ({typed})" if proposed else name


def _is_made_up(name: str) -> bool:
    """Whether Prefect's server made the name up, of two words of ``coolname``: ``wise-otter``."""
    from coolname.data import config

    parts = cast(Mapping[str, Mapping[str, Any]], config).values()
    words = {word for part in parts for word in part.get("words", ())}
    return name.count("-") == 1 and words.issuperset(name.split("-"))


def start_afresh_once(config: PipelineConfig, context: RunContext, stage: StageName) -> None:
    """Archive a finished stage because somebody asked for it; a retry of the flow run does not.

    The retry goes on from the checkpoint of the repeated stage instead.

    Raises:
        BusyError: another process is working on the stage; its folder stays where it is.
    """
    mark = context.directory / f".{stage}.forced-by"
    with hold_stage(context, stage):
        if mark.exists() and mark.read_text(encoding="utf-8") == str(flow_run.id):
            return
        archive_stage(context, stage)
        keep_absence(config, context, stage)
        mark.write_text(str(flow_run.id), encoding="utf-8")


def is_deployed() -> bool:
    """Return whether a worker runs this flow, and not the command line."""
    current = FlowRunContext.get()
    return bool(current and current.flow_run and current.flow_run.deployment_id)


def label_process() -> None:
    """Write on the flow run which process works on it, so that its death can be noticed."""
    current = FlowRunContext.get()
    if current is None or current.flow_run is None:
        return
    with (
        best_effort("process_not_labelled"),
        get_client(sync_client=True) as client,
    ):
        client.update_flow_run_labels(current.flow_run.id, {**labels_of_this_process()})


def _name_after_flow_run() -> str | None:
    current = FlowRunContext.get()
    flow = current.flow_run if current else None
    if flow is None or flow.created is None:
        return None
    return named_after(flow.created, str(flow.id))


def named_after(created: datetime, flow_run_id: str) -> str:
    """Return the id of the run that a flow run begins: a retry of it finds the run again."""
    return f"{created:%Y%m%d-%H%M%S}-{flow_run_id[-4:]}"


def runs_in_prefect() -> set[str]:
    """Return the ids of runs that a flow run of Prefect's server has begun and not ended.

    Raises:
        OrchestrationError: the server does not answer.
    """
    url = load_settings().prefect_api_url
    if url is None:
        return set()
    states = ["RUNNING", "PENDING", "PAUSED", "CANCELLING", "SCHEDULED"]
    found: set[str] = set()
    for each in every_flow_run(url, states):
        created = datetime.fromisoformat(each["created"])
        found.add(named_after(created, each["id"]))
        inputs = (each.get("parameters") or {}).get("inputs")
        if isinstance(inputs, dict) and inputs.get("run"):
            found.add(Path(str(inputs["run"])).name)
    return found
