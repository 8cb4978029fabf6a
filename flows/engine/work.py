"""One stage carried out: once for the same inputs, watched while it runs, shown when it is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlhf_core.config import PipelineConfig
from rlhf_core.errors import KlLimitError
from rlhf_core.ports import Observer
from rlhf_core.schema import Record, RunContext, StageName, StageResult
from rlhf_core.storage.full_disk import in_one_line
from rlhf_flows.engine import bindings
from rlhf_flows.engine.artifacts import show_handed
from rlhf_flows.engine.events import announce
from rlhf_flows.engine.files import places
from rlhf_flows.engine.run_folder import start_afresh_once
from rlhf_flows.engine.runs import run_once
from rlhf_flows.engine.watching import STOP, watch_training

Handed = TypeVar("Handed", bound=Record)


@dataclass(frozen=True)
class Work(Generic[Handed]):
    """What is to be done."""

    config: PipelineConfig
    context: RunContext
    stage: StageName
    record: type[Handed]
    """What the stage hands on."""
    force: bool = False
    """Repeat it even if it was done from the same inputs."""
    reuse: bool = True
    """Take what was done from the same inputs."""


def carry_out(
    work: Work[Handed], made_from: Mapping[str, str], compute: Callable[[Observer], Handed]
) -> Handed:
    """Do the work unless it was done; show progress and result in Prefect, tell of failed gates.

    Args:
        work: the stage.
        made_from: name to digest of everything upstream that the stage reads.
        compute: does the work; a training tells the observer of its steps and KL spikes.
    """
    context, stage = work.context, work.stage
    if work.force:
        start_afresh_once(work.config, context, stage)

    def compute_and_report() -> Handed:
        with watch_training(context, stage) as observer:
            handed = compute(observer)
        if isinstance(handed, StageResult) and handed.decision.verdict != "PROMOTE":
            verdict, reasons = handed.decision.verdict, "; ".join(handed.decision.reasons)
            announce("rlhf.gate-failed", context, stage=stage, verdict=verdict, reasons=reasons)
        return handed

    try:
        with in_one_line(places()):
            handed = run_once(
                context, stage, made_from, compute_and_report, record=work.record, reuse=work.reuse
            )
    except KlLimitError as error:
        announce("rlhf.kl-spike", context, stage=stage, action=STOP, message=str(error))
        raise
    bindings.keep_record(work.config, context, stage)
    show_handed(stage, handed, work.config, context)
    return handed
