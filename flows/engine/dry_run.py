"""What a run or a stage would do: looked up and nothing changed, not even a folder made."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from rlhf_core.adapters.registry import registry
from rlhf_core.adapters.tracking.run_records import is_recorded
from rlhf_core.config import (
    VERSION_NAME,
    PipelineConfig,
    PreparationConfig,
    config_digest,
    judges_of,
)
from rlhf_core.config.base import Section
from rlhf_core.config.reference import unusual
from rlhf_core.config.stages import STAGES, reads_of, section_of, stages_of
from rlhf_core.schema import (
    DatasetSplits,
    ModelRef,
    Record,
    RunContext,
    StageName,
    StageResult,
)
from rlhf_core.stages.promote import Promotion
from rlhf_flows.engine.inputs import ModelInputs, may_begin
from rlhf_flows.engine.references import (
    check_roles,
    find_dataset,
    find_models,
    find_scorers,
    given_models,
)
from rlhf_flows.engine.runs.folder import RESULT, locate_run, require_run, require_same_settings
from rlhf_flows.engine.runs.settings import flat_settings
from rlhf_flows.engine.runs.stage_folder import is_made_from, saved_result
from rlhf_flows.engine.stage import ModelStage, Stage

NEW = "(new)"
"""Name of a run that has none yet."""


class PlannedStage(Record):
    """One stage of a dry run."""

    stage: StageName
    would: Literal["run", "skip", "not be reached"]
    why: str
    reads: dict[str, str]
    """Dataset, files and models, by what they are to the stage."""
    settings: dict[str, str]
    """Of the stage's section, those that differ from the defaults."""


class DryRun(Record):
    """What a command would do."""

    run_id: str
    is_new: bool
    config_sha256: str
    stages: tuple[PlannedStage, ...]
    problem: str | None = None
    """What would end the command before the first stage; None where nothing is known that would."""


def plan_pipeline(config: PipelineConfig, run_id: str | None) -> DryRun:
    """Say stage by stage what `rlhf run` would do.

    Raises:
        ConfigError: the run was begun with other settings.
    """
    context, is_new = _context(config, run_id)
    plan = _Plan(config, context)
    return DryRun(
        run_id=context.run_id,
        is_new=is_new,
        config_sha256=config_digest(config),
        stages=tuple(plan.next_stage(stage) for stage in stages_of(config)),
    )


def plan_stage(
    config: PipelineConfig, run_id: str | None, stage: StageName, inputs: ModelInputs
) -> DryRun:
    """Say what a command of one stage would do.

    Raises:
        RlhfError: what it reads cannot be found.
    """
    context, is_new = _context(config, run_id)
    if run_id and is_new and not may_begin(inputs) and not is_recorded(context):
        require_run(context)
    check_roles(inputs)
    splits = _look_for_dataset(config, context, inputs.dataset)
    given = given_models(inputs)
    models = find_models(stage, config, context, given, registry.look_up_model)
    reads = {"dataset": _dataset(config, splits, inputs.dataset), **_names(models)}
    reads |= _outside(config, stage)
    done = (
        not inputs.force and splits is not None and _is_done(config, context, stage, splits, models)
    )
    why = "done, from the same inputs" if done else _why(context, stage, force=inputs.force)
    planned = PlannedStage(
        stage=stage,
        would="skip" if done else "run",
        why=why,
        reads=reads,
        settings=settings_of(config, stage),
    )
    return DryRun(
        run_id=context.run_id,
        is_new=is_new,
        config_sha256=config_digest(config),
        stages=(planned,),
    )


def plan_preparation(config: PreparationConfig) -> PlannedStage:
    """Say what `rlhf prepare` would do.

    Raises:
        DataError: a raw file is missing, or the output is somebody else's.
    """
    from rlhf_core.stages.prepare import find_prepared, require_own_folders

    if config.data.version is None:
        require_own_folders(config)
    kept = find_prepared(config)
    return PlannedStage(
        stage="prepare",
        would="run" if kept is None else "skip",
        why="not prepared yet" if kept is None else f"prepared before: {kept.directory}",
        reads=_raw(config),
        settings=_changed(config, "data"),
    )


class _Plan:
    """A pipeline, stage after stage, from what the ones before it made or would make."""

    def __init__(self, config: PipelineConfig, context: RunContext) -> None:
        self._config, self._context = config, context
        self._results: dict[StageName, StageResult] = {}
        self._splits: DatasetSplits | None = None
        self._to_run: set[StageName] = set()
        self._known: set[StageName] = set()
        """Stages whose result is known before they run."""
        self._ended: str | None = None

    def next_stage(self, stage: StageName) -> PlannedStage:
        would, why = self._decide(stage)
        planned = PlannedStage(
            stage=stage,
            would=would,
            why=why,
            reads=self._reads(stage),
            settings=settings_of(self._config, stage),
        )
        if would == "run" and stage not in self._known:
            self._to_run.add(stage)
        result = self._results.get(stage)
        if result and result.verdict not in ("PROMOTE", None):
            self._ended = f"{stage} said {result.verdict}"
        return planned

    def _decide(self, stage: StageName) -> tuple[Literal["run", "skip", "not be reached"], str]:
        if self._ended:
            return "not be reached", self._ended
        missing = [read for read in reads_of(stage, self._config) if read in self._to_run]
        if missing:
            return "run", f"{' and '.join(missing)} would run before it"
        if not STAGES[stage].works_on_models:
            return self._promote() if STAGES[stage].reads else self._prepare()
        models = find_models(stage, self._config, self._context, {}, registry.look_up_model)
        if self._splits is not None and _is_done(
            self._config, self._context, stage, self._splits, models
        ):
            done = saved_result(self._context, stage, StageResult)
            self._results |= {stage: done} if done else {}
            return "skip", "done, from the same inputs"
        return "run", _why(self._context, stage)

    def _prepare(self) -> tuple[Literal["run", "skip"], str]:
        from rlhf_core.stages.prepare import find_prepared

        stage = Stage(name="prepare", config=self._config, context=self._context, force=False)
        saved = saved_result(self._context, "prepare", DatasetSplits)
        same = is_made_from(self._context, "prepare", stage.made_from())
        if saved and saved.report.is_file() and same:
            self._splits = saved
            return "skip", "done, from the same raw data"
        self._splits = find_prepared(self._config)
        if self._splits is None:
            return "run", _why(self._context, "prepare")
        self._known.add("prepare")
        return "run", f"takes what was prepared before from the same: {self._splits.directory}"

    def _promote(self) -> tuple[Literal["run", "not be reached"], str]:
        if self._config.promotion.approval == "person":
            return "run", "if a person agrees"
        saved = saved_result(self._context, "promote", Promotion)
        return "run", f"again: it said {saved.verdict}" if saved else "its gates said PROMOTE"

    def _reads(self, stage: StageName) -> dict[str, str]:
        config, reads, found = self._config, reads_of(stage, self._config), dict[str, str]()
        for read in reads:
            if not STAGES[read].works_on_models:
                found["dataset"] = _dataset(config, self._splits)
                continue
            role = STAGES[read].judges or read
            made = self._results.get(role)
            found[role] = made.model.uri if made else f"what {role} makes"
        found |= _outside(config, stage)
        if "policy" in reads:
            found |= self._deciders()
        if "judge" in found and (named := self._named_judges()):
            found["judge"] = named
        return found

    def _named_judges(self) -> str:
        """Those of the settings; empty where they name none."""
        named = judges_of(self._config.evaluation.judge)
        return ", ".join(seat if isinstance(seat, str) else seat.model for seat in named)

    def _deciders(self) -> dict[str, str]:
        """Champion and judge of an evaluation, as far as they are not the run's own."""
        from rlhf_core.adapters.registry.champions import read_history
        from rlhf_core.adapters.registry.decision import judge_of
        from rlhf_core.adapters.tracking.mlflow_client import has_store

        current = read_history(self._config.project).current if has_store() else None
        found = {"champion": current.policy} if current else {"champion": "none yet"}
        if self._named_judges():
            return found
        judge = judge_of(current.policy) if current else None
        return found | ({"judge": f"{judge} (of the champion's release)"} if judge else {})


def settings_of(config: PipelineConfig, stage: StageName) -> dict[str, str]:
    """Return the settings of a stage that differ from their defaults."""
    return _changed(config, section_of(stage, config))


def _changed(config: PreparationConfig, section: str) -> dict[str, str]:
    written = getattr(config, section, None)
    found = unusual(written) if isinstance(written, Section) else {}
    return flat_settings(found, section) if found else {}


def _context(config: PipelineConfig, run_id: str | None) -> tuple[RunContext, bool]:
    context = locate_run(run_id or NEW, config.runs)
    return context, not require_same_settings(context, config)


def _is_done(
    config: PipelineConfig,
    context: RunContext,
    stage: StageName,
    splits: DatasetSplits,
    models: Mapping[str, ModelRef],
) -> bool:
    """Whether the stage's result was made from just this; digests tell."""
    if saved_result(context, stage, StageResult) is None:
        return False
    opened = ModelStage(
        name=stage,
        config=config,
        context=context,
        force=False,
        splits=splits,
        models=models,
        scorers=find_scorers(stage, config, registry.look_up_model),
    )
    return is_made_from(context, stage, opened.made_from())


def _why(context: RunContext, stage: StageName, *, force: bool = False) -> str:
    folder = context.stage_directory(stage)
    if force:
        return "--force; what was done is kept beside it"
    if (folder / RESULT).exists():
        return "its inputs have changed; what was done is kept beside it"
    steps = sorted(folder.glob("checkpoints/step-*"))
    return f"goes on from {steps[-1].name}" if steps else "not done yet"


def _outside(config: PipelineConfig, stage: StageName) -> dict[str, str]:
    """Return the files that a stage reads and no stage made, by what they are."""
    sources = STAGES[stage].sources
    found = _raw(config) if "raw" in sources else {}
    return found | ({"base": config.model.base} if "base" in sources else {})


def _raw(config: PreparationConfig) -> dict[str, str]:
    from rlhf_core.stages.preparation.inputs import named_paths

    if config.data.version is not None:
        return {"dataset": f"version {config.data.version}"}
    return {key: str(path) for key, path in named_paths(config.data).items()}


def _look_for_dataset(
    config: PipelineConfig, context: RunContext, given: str | None
) -> DatasetSplits | None:
    """Return what a stage reads; None where nobody knows it before it is made or brought here."""
    from rlhf_core.stages.versions.versions import find_fetched

    saved = saved_result(context, "prepare", DatasetSplits)
    if given is None and saved is None:
        return _prepared(config)
    if given is None and saved is not None and not saved.directory.is_dir():
        return saved
    if given is not None and re.fullmatch(VERSION_NAME, given):
        return find_fetched(given)
    directory, _, sha256 = (given or "").partition("@")
    if sha256 and not Path(directory).is_dir():
        return None
    return find_dataset(config, context, given)


def _prepared(config: PipelineConfig) -> DatasetSplits | None:
    from rlhf_core.stages.prepare import find_prepared

    return find_prepared(config)


def _dataset(
    config: PreparationConfig, splits: DatasetSplits | None, given: str | None = None
) -> str:
    if splits is not None:
        return f"{splits.directory} (sha256 {splits.sha256[:12]})"
    return given or config.data.version or "what prepare makes"


def _names(models: Mapping[str, ModelRef]) -> dict[str, str]:
    return {role: model.uri for role, model in models.items()}
