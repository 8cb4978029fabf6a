"""What a pipeline run has done so far: stages in order, with their results and times."""

import logging
import time
from typing import TypeVar

from prefect import Flow

from rlhf_core.adapters.tracking.run_records import fetch_records
from rlhf_core.config import PipelineConfig
from rlhf_core.config.stages import STAGES
from rlhf_core.schema import (
    DatasetSplits,
    Record,
    RunContext,
    StageName,
    StageResult,
    Verdict,
)
from rlhf_core.stages.promote import Promotion
from rlhf_flows.engine.flow_results import PipelineResult, StageTiming
from rlhf_flows.engine.inputs import StageInputs
from rlhf_flows.engine.remote import StageFailedError, run_deployed_stage
from rlhf_flows.engine.runs.folder import RESULT
from rlhf_flows.engine.runs.in_prefect import is_deployed, start_afresh_once
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.engine.runs.stage_folder import saved_result

logger = logging.getLogger(__name__)

Result = TypeVar("Result", bound=Record)


def passed(result: StageResult) -> bool:
    """Return whether every gate of the stage said PROMOTE."""
    return result.verdict == "PROMOTE"


class Progress:
    """Runs stages and keeps their results."""

    def __init__(
        self, settings: RunSettings | None, config: PipelineConfig, context: RunContext
    ) -> None:
        self.config = config
        self.context = context
        self._settings = settings
        self._results: dict[StageName, StageResult] = {}
        self._timings: list[StageTiming] = []
        self._kept: tuple[StageName, ...] = ()

    @property
    def reference(self) -> str:
        """The run as its stages find it: by id on whatever machine, by folder where it has one."""
        run = self.context.run_id
        usual = self.context.directory == (self.config.runs / run).absolute()
        return run if usual and is_deployed() else str(self.context.directory)

    def repeat_from(self, first: StageName | None) -> None:
        """Archive ``first`` and all that follow, once for this flow run.

        What finished before ``first`` stands as it is and starts no run of its own.
        """
        if first is None:
            return
        order = tuple(STAGES)
        self._kept = order[: order.index(first)]
        for stage in order[order.index(first) :]:
            start_afresh_once(self.config, self.context, stage)

    def stage(
        self, name: StageName, work: Flow[..., Result], record: type[Result], inputs: StageInputs
    ) -> Result:
        """Run one stage, here or by its deployment, and return its result."""
        started, clock = time.time(), time.perf_counter()
        logger.info("stage=%s started run=%s", name, self.context.run_id)
        before = saved_result(self.context, name, record) if name in self._kept else None
        if before is not None:
            result = before
        elif is_deployed():
            settings = RunSettings(values=self.config.model_dump(mode="json"))
            run_deployed_stage(
                name, work.name, inputs.model_dump(mode="json"), settings.model_dump(mode="json")
            )
            fetch_records(self.config.project, self.context)
            result = self._saved(name, record)
        else:
            result = work(self._settings, inputs)
        seconds = time.perf_counter() - clock
        saved = self.context.stage_directory(name) / RESULT
        reused = saved.exists() and saved.stat().st_mtime < started
        self._remember(result, StageTiming(stage=name, seconds=seconds, reused=reused))
        return result

    def _saved(self, name: StageName, record: type[Result]) -> Result:
        result = saved_result(self.context, name, record)
        if result is None:
            raise StageFailedError(
                f"{name}: completed, but left no result in {self.context.directory} and none with "
                "MLflow; do all workers have the same MLFLOW_TRACKING_URI, a server's?"
            )
        return result

    def _remember(self, result: Record, timing: StageTiming) -> None:
        name, verdict = timing.stage, "none"
        if isinstance(result, StageResult):
            self._results[name] = result
            verdict = result.verdict or verdict
        self._timings.append(timing)
        run, seconds = self.context.run_id, timing.seconds
        logger.info("stage=%s finished run=%s seconds=%.1f verdict=%s", name, run, seconds, verdict)

    def ended(
        self,
        splits: DatasetSplits,
        decided: StageResult,
        promotion: Promotion | None = None,
        held: tuple[Verdict, str] | None = None,
    ) -> PipelineResult:
        """Return the run's outcome: the verdict of the stage that decided, or of a person.

        Args:
            splits: dataset version of the run.
            decided: the last stage that had gates.
            promotion: what promotion did, if it came to that.
            held: verdict and reason of a person who was asked and did not approve.
        """
        last = next(name for name, result in self._results.items() if result is decided)
        verdict, reasons = decided.judgement.verdict, decided.judgement.reasons
        if held is not None:
            verdict, reasons = held[0], (*reasons, held[1])
        return PipelineResult(
            run_id=self.context.run_id,
            directory=self.context.directory,
            verdict=verdict,
            decided_by="promote" if held else last,
            reasons=reasons,
            splits=splits,
            stages=self._results,
            policy=self._results["policy"].model if "policy" in self._results else None,
            promotion=promotion,
            timings=tuple(self._timings),
        )
