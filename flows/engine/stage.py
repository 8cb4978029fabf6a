"""The way of a stage: settings and inputs are resolved in one place, one function runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from rlhf_core.adapters.registry import looks
from rlhf_core.adapters.tracking.checkpoint_copies import drop_copies
from rlhf_core.adapters.tracking.run_records import keep_record
from rlhf_core.config import PipelineConfig, config_digest
from rlhf_core.config.stages import STAGES, Source
from rlhf_core.errors import KlLimitError
from rlhf_core.garbage import loading_begins, loading_ends
from rlhf_core.ports import Observer
from rlhf_core.schema import DatasetSplits, ModelRef, Record, RunContext, StageName, StageResult
from rlhf_core.storage.full_disk import in_one_line
from rlhf_flows.engine.artifacts import show_result
from rlhf_flows.engine.events import announce
from rlhf_flows.engine.files import places
from rlhf_flows.engine.inputs import ModelInputs, PrepareInputs, PromoteInputs, may_begin
from rlhf_flows.engine.references import (
    check_roles,
    find_dataset,
    find_models,
    find_scorers,
    given_models,
)
from rlhf_flows.engine.runs.in_prefect import open_context, start_afresh_once
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.engine.runs.stage_folder import discard_checkpoints, run_once, saved_result
from rlhf_flows.engine.watching import STOP, watch_training

Result = TypeVar("Result", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run whose settings are known."""

    name: StageName
    config: PipelineConfig
    context: RunContext
    force: bool
    """Repeat it even if it was done from the same inputs."""
    models: Mapping[str, ModelRef] = field(default_factory=dict)
    """By role: what the stage reads and the settings ask for."""
    scorers: Mapping[str, ModelRef] = field(default_factory=dict)
    """Models that ``policy.rewards`` names, by that name."""

    def made_from(self) -> dict[str, str]:
        """Return name to digest of what the stage reads.

        Raises:
            RlhfError: something of it cannot be read.
        """
        kind, found = STAGES[self.name], dict[str, str]()
        for read in (*kind.reads, *kind.sources):
            if read in _DIGESTS:
                found |= _DIGESTS[read](self)
        return found


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """A stage that reads a dataset and makes or measures a model."""

    splits: DatasetSplits

    def made_from(self) -> dict[str, str]:
        """Return name to digest of what the stage reads."""
        models = {role: model.sha256 for role, model in self.models.items()}
        own = {"settings": config_digest(self.config), "dataset": self.splits.sha256}
        return own | models | super().made_from()


def open_stage(
    name: StageName, settings: RunSettings | None, inputs: PrepareInputs | PromoteInputs
) -> Stage:
    """Resolve the settings and the run of a stage that reads no model.

    Raises:
        ConfigError: neither settings nor an existing run were given, or they disagree.
    """
    loading_begins()
    config, context = open_context(settings, inputs.run, may_begin=may_begin(inputs))
    return Stage(name=name, config=config, context=context, force=inputs.force)


def open_model_stage(
    name: StageName, settings: RunSettings | None, inputs: ModelInputs
) -> ModelStage:
    """Resolve settings, run, dataset and models of a stage.

    Raises:
        ConfigError: as ``open_stage``.
        DataError: the dataset is not the one referred to.
        RegistryError: a model is not there, or was trained as something else.
    """
    loading_begins()
    check_roles(inputs)
    config, context = open_context(settings, inputs.run, may_begin=may_begin(inputs))
    splits = find_dataset(config, context, inputs.dataset)
    return ModelStage(
        name=name,
        config=config,
        context=context,
        force=inputs.force,
        splits=splits,
        models=find_models(name, config, context, given_models(inputs)),
        scorers=find_scorers(name, config),
    )


def _of_raw_data(stage: Stage) -> dict[str, str]:
    from rlhf_core.stages.prepare import prepare_fingerprint

    return {"made_from": prepare_fingerprint(stage.config)}


def _of_base_model(stage: Stage) -> dict[str, str]:
    from rlhf_core.stages.models.renderers import base_digest

    return {"base": base_digest(stage.config.model)}


def _of_rewards(stage: Stage) -> dict[str, str]:
    found = {} if "reward" in stage.models else {"reward": "none"}
    if terms := stage.config.policy.rewards:
        from rlhf_core.stages.training.reward_terms import rewards_digest

        found["rewards"] = rewards_digest(terms, stage.scorers)
    return found


def _of_votes(stage: Stage) -> dict[str, str]:
    """Votes of people that came in since are new evidence: a finished evaluation decides again."""
    before = saved_result(stage.context, stage.name, StageResult)
    look = before.report.look if before else None
    votes = looks.votes_digest(look.entry) if look else None
    return {"votes": votes} if votes else {}


def _of_suites(stage: Stage) -> dict[str, str]:
    from rlhf_core.evaluation.suites import suites_digest

    suites = suites_digest(stage.config.evaluation.suites)
    return {"suites": suites} if suites else {}


def _of_evaluation(stage: Stage) -> dict[str, str]:
    evaluated = saved_result(stage.context, "evaluate", StageResult)
    if evaluated is None:
        return {}
    return {"model": evaluated.model.sha256, "verdict": evaluated.judgement.verdict}


_DIGESTS: dict[StageName | Source, Callable[[Stage], dict[str, str]]] = {
    "raw": _of_raw_data,
    "base": _of_base_model,
    "rewards": _of_rewards,
    "votes": _of_votes,
    "suites": _of_suites,
    "evaluate": _of_evaluation,
}
"""Digests of what a stage reads beside settings, dataset and models."""


def run_stage(
    stage: Stage,
    record: type[Result],
    compute: Callable[[Observer], Result],
    *,
    reuse: bool = True,
) -> Result:
    """Run the stage unless it was done; show progress and result in Prefect, tell of failed gates.

    Args:
        stage: the stage.
        record: what it returns.
        compute: does the work; a training tells the observer of its steps and KL spikes.
        reuse: take what was done from the same inputs.
    """
    context, name = stage.context, stage.name
    inputs = stage.made_from()
    if stage.force:
        start_afresh_once(stage.config, context, name)

    def compute_and_report() -> Result:
        loading_ends()
        with watch_training(context, name) as observer:
            result = compute(observer)
        decision = result.decision if isinstance(result, StageResult) else None
        if decision is not None and decision.verdict != "PROMOTE":
            against = (said for said in decision.reasons if not said.startswith("PROMOTE"))
            said = {"verdict": decision.verdict, "reasons": "; ".join(against)}
            announce("rlhf.gate-failed", context, stage=name, **said)
        return result

    try:
        with in_one_line(places()):
            result = run_once(context, name, inputs, compute_and_report, record=record, reuse=reuse)
    except KlLimitError as error:
        announce("rlhf.kl-spike", context, stage=name, action=STOP, message=str(error))
        raise
    keep_record(stage.config, context, name)
    done = None if stage.config.keep_checkpoints else _needs_no_checkpoints(stage, result)
    if done is not None and discard_checkpoints(context, done):
        drop_copies(context.stage_directory(done))
    show_result(name, result, stage.config, context)
    return result


def _needs_no_checkpoints(stage: Stage, result: Record) -> StageName | None:
    """Return the stage whose checkpoints nobody reads any more, now that ``stage`` is done.

    The policy's may still be chosen from until its evaluation says yes or no; HOLD is neither.
    """
    done = STAGES[stage.name].judges
    if done is None or done == stage.name:
        return done
    if not isinstance(result, StageResult) or result.verdict == "HOLD":
        return None
    trained = saved_result(stage.context, done, StageResult)
    own = trained is not None and trained.model.sha256 == stage.models[done].sha256
    return done if own else None
